"""What compilers make of every fused kernel, without a GPU: a table for docs/kernels.md.

python -m benchmarks.compiled_kernels --json benchmarks/results/compiled_kernels.json

Instructions a sample are warp instructions of the longest loop (of the whole kernel without one)
times the program's warps, for each sample that one pass computes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from benchmarks import _compiled_other, _compiled_render
from benchmarks.compiled import TARGETS, compile_kernel
from scaledreamer.cli.errors import Parser, run
from scaledreamer.kernels.backend import is_interpreting
from scaledreamer.storage import write_json
from scaledreamer.training import provenance

COLUMNS = ("registers", "stack_bytes", "shared_bytes", "instructions_a_sample", "vector_red")


def rows() -> Iterator[dict[str, Any]]:
    """One a kernel, its figures by compute capability."""
    limited = [
        (one, _compiled_render.max_registers(one)) for one in _compiled_render.specialisations()
    ]
    found = [*limited, *((one, None) for one in _compiled_other.specialisations())]
    for one, limit in track(found, "compiling"):
        name, kernel, signature, constants, num_warps, samples = one
        row: dict[str, Any] = {"kernel": name, "warps": num_warps}
        for target in TARGETS:
            made = compile_kernel(
                kernel, signature, constants, target, num_warps, max_registers=limit
            )
            row[f"sm_{target}"] = {
                "registers": made.registers,
                "stack_bytes": made.stack_bytes,
                "shared_bytes": made.shared_bytes,
                "instructions_a_sample": round(made.loop_instructions * num_warps / samples, 1),
                "vector_red": made.count(r"RED.*F32x[24]"),
                "scalar_red": made.count(r"RED(?!.*F32x)"),
                "value_returning_atomics": made.count(r"ATOM"),
                "tensor_core": made.count(r"HG?MMA"),
            }
        yield row


def markdown(made: Sequence[dict[str, Any]]) -> str:
    """Figures of sm_90, with those of sm_80 in brackets where they differ."""
    titles = ("kernel", "warps", "registers", "spilled bytes", "shared bytes")
    titles += ("instructions a sample", "vector reductions", "tensor-core instructions")
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for row in made:
        new, old = row["sm_90"], row["sm_80"]
        cells = [row["kernel"], str(row["warps"])]
        for name in (*COLUMNS, "tensor_core"):
            differs = "" if new[name] == old[name] else f" ({old[name]})"
            cells.append(f"{new[name]}{differs}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    return run(lambda: _tabulate(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.compiled_kernels",
        description="Registers, spills, shared memory and instructions of every fused kernel.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser


def _tabulate(options: argparse.Namespace) -> int:
    if is_interpreting():
        raise ValueError("TRITON_INTERPRET=1: interpreted kernels can't be compiled; unset it")
    made = list(rows())
    print(markdown(made))
    if options.json is not None:
        write_json(options.json, {"versions": provenance.versions(), "rows": made})
    return 0


if __name__ == "__main__":
    sys.exit(main())
