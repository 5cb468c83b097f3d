"""Everything a GPU is wanted for, in one command of less than ten minutes.

python -m benchmarks.gpu_check                 tests of all kernels compiled, then every benchmark
python -m benchmarks.gpu_check --dry-run       the same on a CPU at tiny sizes, kernels interpreted
python -m benchmarks.gpu_check --peers DIR     other projects' kernels too: up to nine minutes more

Each part is a process with a time limit and writes its JSON under --output as soon as it is done,
so that what an interruption leaves is whole.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.kernels import FUSED_OPS, TESTS
from scaledreamer.cli._output import writable_folder
from scaledreamer.cli.errors import Parser, run
from scaledreamer.storage import write_json
from scaledreamer.training import provenance

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Part:
    """One command, started as `python ARGUMENTS`."""

    name: str
    arguments: tuple[str, ...]
    limit_s: float
    is_interpreted: bool = False
    needs: str | None = None
    """Left out unless the part of this name went well."""


BENCHMARK_S = {"render_triplane": 120, "field_query": 50, "hash_encode": 70, "composite": 40}
"""Time limits, by how many forms and workloads an operation has."""


def parts(output: Path, label: str, is_dry: bool, peers: Path | None = None) -> list[Part]:
    """In the order of their worth, so that a short loan of a GPU goes furthest."""
    dry = ("--dry-run",) if is_dry else ("--seconds", "0.5")
    short = ("-k", "is_the_reference or matches_the_reference") if is_dry else ()
    steps = ("--steps", "2") if is_dry else ("--steps", "50")
    out: list[Part] = []
    beside: list[Part] = []
    for op in FUSED_OPS:
        tests = [f"tests/kernels/{name}" for name in TESTS[op]]
        arguments = ("-m", "pytest", "-q", "-m", "interpreted", *tests, *short)
        out.append(Part(f"tests {op}", arguments, 60, is_dry))
        file = str(output / f"kernels_{op}_{label}.json")
        command = ("-m", "benchmarks.kernels", "--ops", op, "--skip-tests", *dry)
        arguments = (*command, "--json", file, "--peer-rows", "none")
        limit_s = BENCHMARK_S[op]
        out.append(Part(f"benchmark {op}", arguments, limit_s, is_dry, needs=f"tests {op}"))
        if peers is not None and op != "field_query":
            folder = str(peers.resolve())
            file = str(output / f"peers_{op}_{label}.json")
            arguments = (*command, "--json", file, "--peer-rows", "only", "--peers", folder)
            beside.append(Part(f"peers {op}", arguments, 180, is_dry, needs=f"tests {op}"))
    file = str(output / f"step_time_{label}.json")
    config = ("--config", "configs/toybox/quickstart.yaml")
    out.append(
        Part("step time", ("-m", "benchmarks.step_time", *config, *steps, "--json", file), 70)
    )
    return [*out, *beside]


def main(argv: Sequence[str] | None = None) -> int:
    return run(lambda: _check(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.gpu_check",
        description="Kernel tests compiled, bandwidths, all benchmarks: JSON under --output.",
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument(
        "--peers", type=Path, metavar="DIR", help="where other projects' kernels lie"
    )
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, tiny, interpreted")
    return parser


def _check(options: argparse.Namespace) -> int:
    if not options.dry_run and not torch.cuda.is_available():
        raise ValueError("no GPU here; --dry-run shows on a CPU that everything would run")
    name = "dry_run" if options.dry_run else torch.cuda.get_device_name().replace(" ", "_").lower()
    rows = []
    with writable_folder(options.output):
        for part in parts(options.output, name, options.dry_run, options.peers):
            print(f"== {part.name}", flush=True)
            went_well = {row["part"] for row in rows if row["result"] == "ok"}
            if part.needs is not None and part.needs not in went_well:
                rows.append({"part": part.name, "seconds": 0.0, "result": "left out"})
            else:
                rows.append({"part": part.name, **_run_part(part)})
            summary = {"commit": provenance.commit(), "versions": provenance.versions()}
            write_json(options.output / f"gpu_check_{name}.json", {**summary, "parts": rows})
    table = Table("part", "seconds", "result")
    for row in rows:
        table.add_row(row["part"], f"{row['seconds']:.0f}", row["result"])
    Console().print(table)
    return 0 if all(row["result"] == "ok" for row in rows) else 1


def _run_part(part: Part) -> dict[str, object]:
    environment = {**os.environ, "TRITON_INTERPRET": "1" if part.is_interpreted else "0"}
    start = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, *part.arguments], cwd=ROOT, env=environment, timeout=part.limit_s
        )
        result = "ok" if done.returncode == 0 else f"exit code {done.returncode}"
    except subprocess.TimeoutExpired:
        result = f"stopped after {part.limit_s:.0f} s"
    return {"seconds": time.monotonic() - start, "result": result}


if __name__ == "__main__":
    sys.exit(main())
