"""Other projects' kernels beside ours: found in a folder, compared, then timed in turn with ours.

A peer is a clone or an unpacked wheel in a folder of its own; what it needs besides lies in `site`.
What is not there, doesn't run or computes something else is a row that says so, and has no time;
only a peer that breaks the GPU's context ends the run, after what was measured is written.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from benchmarks._cases import Case, Run
from benchmarks._timing import (
    Budget,
    Timing,
    interleaved,
    largest,
    peak_memory_mb,
    worst_error,
)
from scaledreamer.kernels.backend import use_backend

SITE = "site"
_failed: dict[Path, Exception] = {}
"""Why a peer could not be imported: a build of minutes is tried once."""
TOLERANCE = 1e-3
"""Largest error of an output, as a share of its largest value in float64."""
GRADIENT_TOLERANCE = 1e-2
"""The same of a gradient: a ReLU whose input rounds to the other side of 0 alone makes 2e-3 of W1
in float32, by our own reference too."""

Leaves = Callable[[torch.device, torch.Generator], Sequence[Tensor]]
Pair = tuple[Callable[[], object], Callable[[], object]]
"""A call's forward pass, and with the backward pass."""


@dataclass(frozen=True)
class Theirs:
    """A peer's operation on tensors in the peer's layout."""

    convert: Callable[[Sequence[Tensor]], list[Tensor]]
    """Our leaves in that layout: differentiable, and not timed."""
    run: Callable[[Sequence[Tensor]], Sequence[Tensor]]
    """What is timed."""
    as_ours: Callable[[Sequence[Tensor]], Sequence[Tensor]] = lambda outputs: outputs
    """Its outputs in our form: not timed."""


Build = Callable[[ModuleType, torch.device], Theirs]


@dataclass(frozen=True)
class Comparison:
    """One function computed by both, on a workload of its own, small enough for float64."""

    leaves: Leaves
    ours: Run
    theirs: Build


@dataclass(frozen=True)
class PeerCase:
    """A peer's operation and the case of ours that it is timed with."""

    peer: str
    """Its folder."""
    package: str
    form: str
    ours: Case
    theirs: Build
    comparisons: tuple[Comparison, ...]
    """All must hold before a time is reported."""
    note: str = ""
    """How the function that is timed differs from ours."""
    leaves: Leaves | None = None
    """Where the peer's decoder takes other tensors than ours."""
    prepare: Callable[[Path], None] | None = None
    """Called with the peer's folder before the import."""


def measure(
    case: PeerCase,
    folder: Path,
    device: torch.device,
    ours: Mapping[str, Pair],
    budget: Budget,
    is_green: bool,
) -> dict[str, Any]:
    """The row of one peer; `ours` are our forms of the same case. Raises nothing of the peer's."""
    row: dict[str, Any] = {"op": case.ours.op, "workload": case.ours.workload, "form": case.form}
    row |= {"peer": case.peer, "note": case.note, "tolerance": [TOLERANCE, GRADIENT_TOLERANCE]}
    if not (folder / case.peer).is_dir():
        return row | {"status": "not here"}
    try:
        package = load(case, folder)
        errors = [_errors(comparison, package, device) for comparison in case.comparisons]
        worst = [largest(values) for values in zip(*errors, strict=True)]
        row |= {"output_error": worst[0], "gradient_error": worst[1]}
        if not (worst[0] <= TOLERANCE and worst[1] <= GRADIENT_TOLERANCE):  # NaN differs too
            return row | {"status": "differs"}
        return row | _timed(case, package, device, ours, budget, is_green)
    # foreign code: whatever it raises is its result here, and the other peers still run
    except Exception as error:
        return row | {"status": "failed", "reason": _one_line(error)}


def load(case: PeerCase, folder: Path) -> ModuleType:
    """The peer's package out of its folder.

    Raises: ImportError when another copy of it is imported already or installed.
    """
    root = (folder / case.peer).resolve()
    # last, for a clone's top level is full of common names; and for good, for peers import lazily
    for path in (root, (folder / SITE).resolve()):
        if str(path) not in sys.path:
            sys.path.append(str(path))
    if root in _failed:
        raise _failed[root]
    try:
        if case.prepare is not None and case.package not in sys.modules:
            case.prepare(root)
        package = importlib.import_module(case.package)
    except Exception as error:
        _failed[root] = error
        raise
    where = Path(package.__file__ or "").resolve()
    if root not in where.parents:
        raise ImportError(f"{case.package} came from {where.parent}, not from {root}")
    return package


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def _errors(
    comparison: Comparison, package: ModuleType, device: torch.device
) -> tuple[float, float]:
    """Of the outputs and of the gradients, against our reference in float64."""
    generator = torch.Generator().manual_seed(0)
    leaves = [one.requires_grad_() for one in comparison.leaves(device, generator)]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    theirs = comparison.theirs(package, device)
    outputs = list(theirs.as_ours(theirs.run(theirs.convert(leaves))))
    with use_backend("reference"):
        expected = list(comparison.ours(exact, "exact"))
    shapes = [[tuple(one.shape) for one in many] for many in (outputs, expected)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"outputs have shapes {shapes[0]}; ours have {shapes[1]}")
    generator.manual_seed(2)
    weights = [torch.randn(one.shape, generator=generator).to(device) for one in expected]
    gradients = torch.autograd.grad(outputs, leaves, weights)
    wanted = torch.autograd.grad(expected, exact, [weight.double() for weight in weights])
    outputs, expected = ([one.detach() for one in many] for many in (outputs, expected))
    return worst_error(outputs, expected), worst_error(gradients, wanted)


def _timed(
    case: PeerCase,
    package: ModuleType,
    device: torch.device,
    ours: Mapping[str, Pair],
    budget: Budget,
    is_green: bool,
) -> dict[str, Any]:
    assert case.form not in ours, "a peer's form has a name of its own"
    pairs = {**ours, case.form: _calls(case, package, device)}
    forward = interleaved({name: pair[0] for name, pair in pairs.items()}, device, budget)
    both = interleaved({name: pair[1] for name, pair in pairs.items()}, device, budget)

    def figures(name: str) -> dict[str, Any]:
        passes = {"forward": asdict(forward[name]), "forward_backward": asdict(both[name])}
        return {**passes, "memory_mb": peak_memory_mb(pairs[name][1], device)}

    def ratios(mine: str) -> list[float]:
        timings: tuple[dict[str, Timing], ...] = (forward, both)
        return [t[case.form].median_ms / t[mine].median_ms for t in timings]

    return {
        "status": "ok",
        **figures(case.form),
        "ours": {name: figures(name) for name in ours},
        "times_ours": {name: ratios(name) for name in ours} if is_green else {},
    }


def _calls(case: PeerCase, package: ModuleType, device: torch.device) -> Pair:
    theirs = case.theirs(package, device)
    leaves = (case.leaves or case.ours.leaves)(device, torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = [leaf.detach().clone() for leaf in theirs.convert(leaves)]
        ones = [torch.ones_like(output) for output in theirs.run(own)]
    own = [leaf.requires_grad_() for leaf in own]

    def forward() -> object:
        with torch.no_grad():
            return theirs.run(own)

    def both() -> object:
        return torch.autograd.grad(list(theirs.run(own)), own, ones)

    return forward, both


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows as people read them; "x ours" is the peer's time as a multiple of ours."""
    out = Table(*("op", "workload", "peer", "forward ms", "both ms", "x ours", "MB", "error"))
    for row in rows:
        name = (row["op"], row["workload"], row["form"])
        errors = "-"
        if "output_error" in row:
            errors = f"{row['output_error']:.0e} / {row['gradient_error']:.0e}"
        if row["status"] != "ok":
            out.add_row(*name, row.get("reason", row["status"]), "", "", "", errors)
            continue
        ratios = [
            f"{mine} {' / '.join(f'{value:.2f}' for value in values)}"
            for mine, values in row["times_ours"].items()
        ]
        out.add_row(
            *name,
            f"{row['forward']['median_ms']:.3f}",
            f"{row['forward_backward']['median_ms']:.3f}",
            "\n".join(ratios) or ("tests red" if row["ours"] else "ours: out of memory"),
            "-" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}",
            errors,
        )
    return out
