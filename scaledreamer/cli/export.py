"""`scaledreamer export`: the averaged weights of a run as a folder to ship."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from scaledreamer.cli.errors import Parser, run
from scaledreamer.pipeline import GeneratorFolder
from scaledreamer.storage import (
    FORMAT,
    atomic_folder,
    load_tensors,
    save_tensors,
    sha256_file,
    write_json,
)

_FILES = ("config.json", "ema.safetensors")
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


def main(argv: Sequence[str] | None = None) -> int:
    return run(lambda: _export(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="scaledreamer export",
        description="Write a generator folder (config.json, ema.safetensors, manifest.json).",
    )
    parser.add_argument("checkpoint", metavar="RUN", help="a run, checkpoint or generator folder")
    parser.add_argument("output", type=Path, metavar="FOLDER", help="new, or an earlier export")
    parser.add_argument("--dtype", choices=tuple(_DTYPES), default="float16")
    return parser


def _export(options: argparse.Namespace) -> int:
    found = GeneratorFolder.find(options.checkpoint)
    _check_output(options.output, found.path)
    dtype = _DTYPES[options.dtype]
    weights = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in load_tensors(found.weights).items()
    }
    with atomic_folder(options.output) as folder:
        write_json(folder / "config.json", found.config)
        save_tensors(folder / "ema.safetensors", weights)
        hashes = {name: sha256_file(folder / name) for name in _FILES}
        write_json(folder / "manifest.json", {"format": FORMAT, "files": hashes})
        size_mb = (folder / "ema.safetensors").stat().st_size / 1e6
    print(
        f"{options.output}: {sum(w.numel() for w in weights.values()):,} weights, {size_mb:.1f} MB"
    )
    return 0


def _check_output(output: Path, source: Path) -> None:
    """Raises ValueError when writing `output` would delete anything but an earlier export."""
    if source.resolve().is_relative_to(output.resolve()):
        raise ValueError(f"output: {output} holds {source}, which is read; name another folder")
    if not output.is_dir():
        return
    names = {path.name for path in output.iterdir()} - {"README.md", "card.json"}
    if names and names != {*_FILES, "manifest.json"}:
        raise ValueError(
            f"output: {output} is neither empty nor an exported generator; name another folder"
        )
