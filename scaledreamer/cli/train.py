"""`train`: a generator by score distillation."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from scaledreamer.cli.errors import Parser, run
from scaledreamer.config import load_config
from scaledreamer.training.config import TrainConfig, cut_schedules

_QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "toybox" / "quickstart.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 for values that are not finite, 2 for a user's error, 128 + signal."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run(lambda: _train(_parser().parse_intermixed_args(words), words))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="train",
        description="Train a prompt-amortized text-to-3D generator.",
        allow_abbrev=False,  # the resume command is found by the options' whole names
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=_QUICKSTART if _QUICKSTART.is_file() else None,
        metavar="FILE",
        help="YAML (default: configs/toybox/quickstart.yaml of a checkout, else the built-in one)",
    )
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings over the file's")
    parser.add_argument("--output", metavar="FOLDER", help="run folder, over the config's")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--resume", metavar="auto|FOLDER", help="go on from the run folder, or from a checkpoint"
    )
    start.add_argument(
        "--init-from", metavar="FOLDER", help="only take the generator's weights of a checkpoint"
    )
    parser.add_argument("--dry-run", action="store_true", help="print config, counts and memory")
    return parser


def _train(options: argparse.Namespace, words: Sequence[str]) -> int:
    if find_spec("accelerate") is None:
        raise ValueError("training needs accelerate; install scaledreamer[train]")
    config = load_config(TrainConfig, options.config, options.overrides)
    if options.output is not None:
        config = replace(config, output=options.output)
    if cut := cut_schedules(config):
        verb = "ends" if len(cut) == 1 else "end"
        warnings.warn(
            f"{', '.join(cut)}: {verb} after the last step, {config.num_steps}; lower to_step",
            stacklevel=2,
        )
    if options.dry_run:
        from scaledreamer.training.dry_run import dry_run

        print(dry_run(config))
        return 0
    from scaledreamer.training.loop import train

    try:
        return train(config, options.resume, options.init_from, [*_program(), *words])
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _program() -> list[str]:
    """How this process was started, for command.txt and the resume command."""
    started = sys.argv[0]
    if not started.endswith(".py"):
        return ["scaledreamer", "train"]
    found = shutil.which("python")
    is_plain = found is not None and os.path.abspath(found) == os.path.abspath(sys.executable)
    python = "python" if is_plain else os.path.relpath(sys.executable)
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return [python, os.path.relpath(started)]
    launcher = ["accelerate"] if is_plain else [python, "-m", "accelerate.commands.accelerate_cli"]
    return [*launcher, "launch", os.path.relpath(started)]
