"""Every operation's forms beside each other: time, memory, error, share of the physical floor.

python -m benchmarks.kernels                     all of a GPU's forms, or numba's on a CPU
python -m benchmarks.kernels --dry-run           tiny sizes: shows that everything runs

An operation's tests run first; where they are red no speed is reported. `eager` is the PyTorch
reference in float32, `compiled` the same under torch.compile. Errors are those against the
reference in float64, as a share of the largest value, worst of the outputs or of the gradients.
Other projects' kernels that lie in --peers follow; docs/kernels.md says how to put them there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks import _limits, _peers
from benchmarks._cases import Case, cases
from benchmarks._peer_cases import peer_cases
from benchmarks._timing import Budget, interleaved, peak_memory_mb, worst_error
from scaledreamer.cli.errors import Parser, run
from scaledreamer.kernels.backend import is_installed, is_interpreting, use_backend
from scaledreamer.storage import write_json
from scaledreamer.training import provenance

ROOT = Path(__file__).parent.parent
PEERS = ROOT / "benchmarks" / "peers"
NUMBA_OPS = ("sample_planes", "hash_encode")
FUSED_OPS = ("render_triplane", "field_query", "hash_encode", "composite")
TESTS = {
    "render_triplane": ("test_render_triplane.py", "test_render_triplane_fused.py"),
    "field_query": ("test_field_query.py",),
    "hash_encode": ("test_hash_encode.py",),
    "composite": ("test_composite.py",),
    "sample_planes": ("test_sample_planes.py",),
}
"""Files under tests/kernels of each operation."""


def main(argv: Sequence[str] | None = None) -> int:
    return run(lambda: _benchmark(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.kernels",
        description="Time, memory and error of every kernel beside its PyTorch reference.",
    )
    parser.add_argument("--ops", nargs="+", choices=sorted({*NUMBA_OPS, *FUSED_OPS}), metavar="OP")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, untimed meaning")
    parser.add_argument(
        "--compiled", action="store_true", help="torch.compile of the reference too"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="at most, for one timing")
    parser.add_argument(
        "--peers", type=Path, metavar="DIR", default=PEERS, help="where other projects' kernels lie"
    )
    parser.add_argument("--peer-rows", choices=("beside", "only", "none"), default="beside")
    parser.add_argument("--skip-tests", action="store_true", help="you have just run them")
    return parser


def _benchmark(options: argparse.Namespace) -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = FUSED_OPS if device.type == "cuda" else NUMBA_OPS
    ops = options.ops or (sorted({*NUMBA_OPS, *FUSED_OPS}) if options.dry_run else known)
    limits = _limits.measure(device, size=1 << 20 if options.dry_run else 1 << 26)
    budget = Budget(1, 3, 0.1) if options.dry_run else Budget(seconds=options.seconds)
    is_green = {op: options.skip_tests or _tests_pass(op) for op in ops}
    rows: list[dict[str, Any]] = []
    peer_rows: list[dict[str, Any]] = []
    result = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "dry_run": options.dry_run,
        "bytes_per_s": limits,
        "tests_pass": None if options.skip_tests else is_green,
        "rows": rows,
        "peers": peer_rows,
    }
    sizes = (options.dry_run, device.type == "cpu")
    known_cases = [] if options.peer_rows == "only" else cases(*sizes)
    chosen = [case for case in known_cases if case.op in ops]
    for case in track(chosen, description="measuring"):
        rows += _measure(case, device, limits, budget, options, is_green[case.op])
        if options.json is not None:
            write_json(options.json, result)
    known_peers = [] if options.peer_rows == "none" else peer_cases(*sizes)
    beside = [case for case in known_peers if case.ours.op in ops]
    # last: what they leave behind on a GPU when they fail can't reach our own figures
    for case in track(beside, description="measuring peers"):
        peer_rows.append(_beside(case, device, budget, options, is_green[case.ours.op]))
        if options.json is not None:
            write_json(options.json, result)
    _print(rows, peer_rows)
    return 0 if all(is_green.values()) else 1


def _tests_pass(op: str) -> bool:
    """The operation's tests, compiled on a GPU and with numba on a CPU."""
    files = [f"tests/kernels/{name}" for name in TESTS[op]]
    command = [sys.executable, "-m", "pytest", "-q", "-x", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ})
    if done.returncode:
        print(done.stdout[-4000:], file=sys.stderr)
    return done.returncode == 0


def _forms(case: Case, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Name -> (backend, precision, whether the call is compiled)."""
    forms: dict[str, Any] = {"eager": ("reference", "exact", False)}
    if options.compiled:
        forms["compiled"] = ("reference", "exact", True)
    if device.type == "cuda" or (options.dry_run and is_interpreting()):
        if case.op in FUSED_OPS:  # the interpreter's bfloat16 is wrong
            names = [name for name in case.precisions if device.type == "cuda" or name != "bf16"]
            forms |= {f"triton {name}": ("triton", name, False) for name in names}
    elif case.op in NUMBA_OPS and is_installed("numba"):
        forms["numba"] = ("numba", "float32", False)
    return forms


def _measure(
    case: Case,
    device: torch.device,
    limits: dict[str, float],
    budget: Budget,
    options: argparse.Namespace,
    is_green: bool,
) -> list[dict[str, Any]]:
    leaves = [
        leaf.requires_grad_() for leaf in case.leaves(device, torch.Generator().manual_seed(0))
    ]
    doubles = [leaf.double() for leaf in leaves]
    exact = _fitting(lambda: _outputs_and_gradients(case, doubles, "reference", "exact"))
    forms = _forms(case, device, options)
    calls = {name: _calls(case, leaves, *form) for name, form in forms.items()}
    calls = {name: pair for name, pair in calls.items() if _fitting(pair[1]) is not None}
    forward = interleaved({name: pair[0] for name, pair in calls.items()}, device, budget)
    both = interleaved({name: pair[1] for name, pair in calls.items()}, device, budget)
    has_floor = case.floor_ms is not None and device.type == "cuda"
    floor = case.floor_ms(limits) if has_floor else (0.0, 0.0)  # type: ignore[misc]
    rows = []
    for name, (backend, precision, _) in forms.items():
        row = {"op": case.op, "workload": case.workload, "form": name, "units": case.units}
        rows.append(row)
        if name not in calls:
            row["out_of_memory"] = True
            continue
        errors = [None, None]
        if exact is not None:
            mine = _outputs_and_gradients(case, leaves, backend, precision)
            errors = [worst_error(a, b) for a, b in zip(mine, exact, strict=True)]
        times = (forward[name], both[name])
        row |= {
            "forward": asdict(times[0]),
            "forward_backward": asdict(times[1]),
            "times_eager": [
                t["eager"].median_ms / t[name].median_ms
                for t in (forward, both)
                if is_green and "eager" in t
            ],
            "percent_of_floor": [
                100 * least / t.median_ms for least, t in zip(floor, times, strict=True)
            ],
            "memory_mb": peak_memory_mb(calls[name][1], device),
            "output_error": errors[0],
            "gradient_error": errors[1],
        }
    return rows


def _beside(
    case: _peers.PeerCase,
    device: torch.device,
    budget: Budget,
    options: argparse.Namespace,
    is_green: bool,
) -> dict[str, Any]:
    """A peer's row; ours are its fused forms, or the reference where there is none."""
    pairs: dict[str, _peers.Pair] = {}
    if (options.peers / case.peer).is_dir():
        generator = torch.Generator().manual_seed(0)
        leaves = [leaf.requires_grad_() for leaf in case.ours.leaves(device, generator)]
        forms = _forms(case.ours, device, options)
        names = [name for name in forms if name not in ("eager", "compiled")] or ["eager"]
        pairs = {name: _calls(case.ours, leaves, *forms[name]) for name in names}
        pairs = {name: pair for name, pair in pairs.items() if _fitting(pair[1]) is not None}
    return _peers.measure(case, options.peers, device, pairs, budget, is_green)


def _fitting(call: Callable[[], Any]) -> Any:
    """What the call returns, or None when the GPU's memory does not hold it."""
    try:
        return call()
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def _calls(
    case: Case, leaves: Sequence[Tensor], backend: Any, precision: str, is_compiled: bool
) -> tuple[Callable[[], object], Callable[[], object]]:
    """The forward pass alone, and with the backward pass."""
    call = torch.compile(case.run) if is_compiled else case.run

    def forward() -> object:
        with use_backend(backend), torch.no_grad():
            return call(leaves, precision)

    with torch.no_grad():
        ones = [torch.ones_like(output) for output in case.run(leaves, precision)]

    def both() -> object:
        with use_backend(backend):
            return torch.autograd.grad(call(leaves, precision), list(leaves), ones)

    return forward, both


def _outputs_and_gradients(
    case: Case, leaves: Sequence[Tensor], backend: Any, precision: str
) -> tuple[list[Tensor], list[Tensor]]:
    own = [leaf.detach().requires_grad_() for leaf in leaves]
    with use_backend(backend):
        outputs = case.run(own, precision)
        generator = torch.Generator().manual_seed(2)
        total = sum(
            (output * torch.randn(output.shape, generator=generator).to(output)).sum()
            for output in outputs
        )
        gradients = torch.autograd.grad(total, own)  # type: ignore[arg-type]
    return [output.detach() for output in outputs], list(gradients)


def _print(rows: Sequence[dict[str, Any]], peer_rows: Sequence[dict[str, Any]]) -> None:
    table = Table(
        *("op", "workload", "form", "forward ms", "both ms", "x eager", "% of floor", "MB", "error")
    )
    for row in rows:
        name = (row["op"], row["workload"], row["form"])
        if "forward" not in row:
            table.add_row(*name, "out of memory")
            continue
        errors = (row["output_error"], row["gradient_error"])
        table.add_row(
            *name,
            f"{row['forward']['median_ms']:.3f}",
            f"{row['forward_backward']['median_ms']:.3f}",
            " / ".join(f"{value:.1f}" for value in row["times_eager"]) or "tests red",
            " / ".join(f"{value:.0f}" for value in row["percent_of_floor"] if value) or "-",
            "-" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}",
            " / ".join("-" if value is None else f"{value:.0e}" for value in errors),
        )
    console = Console(width=max(140, Console().width))
    if rows:
        console.print(table)
    if peer_rows:
        console.print(_peers.table(peer_rows))


if __name__ == "__main__":
    sys.exit(main())
