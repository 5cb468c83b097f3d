"""Small triplane structures and rays, and how results of two forms are compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from scaledreamer.interfaces import DensityKind, MLPWeights, TriplaneStructure
from scaledreamer.rendering.sampling import intersect_box

# Powers of two, so that a kernel's float32 arguments are exactly the reference's.
SDF_SCALE, SPHERE_RADIUS, BETA = 0.25, 0.5, 0.125


@dataclass(frozen=True)
class Case:
    """Sizes of a structure and of the views that look at it."""

    channels: int = 16
    sdf_hidden: tuple[int, ...] = (16,)
    colour_hidden: tuple[int, ...] = (16,)
    kind: DensityKind = "sdf"
    is_shared: bool = False
    texels: int = 5
    scene: tuple[int, ...] = (0,)
    num_scenes: int = 1
    height: int = 3
    width: int = 5
    num_samples: int = 5
    spread: float = 0.6
    """Of the points that rays look at around the centre, metres."""

    @property
    def name(self) -> str:
        widths = f"{self.sdf_hidden}-{self.colour_hidden}".replace(" ", "")
        shared = "-shared" if self.is_shared else ""
        return f"C{self.channels}-{widths}-{self.kind}{shared}"


CASES = (
    Case(16, (32, 32), (16, 16), scene=(2, 0, 2), num_scenes=3, num_samples=7),
    Case(32, (64,), (48,), "density", is_shared=True, scene=(1, 0), num_scenes=2, texels=8),
    Case(48, (16, 16), (64, 64), "density", scene=(0,), height=5),
    Case(64, (48,), (32,), scene=(0, 0), is_shared=True, num_samples=6),
)

TINY = Case(height=2, width=2, num_samples=3)


def inputs(
    case: Case, dtype: torch.dtype, device: torch.device | str
) -> tuple[TriplaneStructure, dict[str, Any]]:
    return structure(case, dtype, device), rays(case, dtype, device)


def structure(case: Case, dtype: torch.dtype, device: torch.device | str) -> TriplaneStructure:
    """Random leaves that require gradients; the same in every dtype."""

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        values = (torch.randn(*shape, dtype=torch.float64) * scale).float()
        return values.to(device, dtype).requires_grad_()

    def decoder(dims: Sequence[int]) -> MLPWeights:
        rows = 1 if case.is_shared else case.num_scenes
        pairs = list(pairwise(dims))
        weights = tuple(leaf(rows, a, b, scale=(2 / a) ** 0.5) for a, b in pairs)
        return MLPWeights(weights, tuple(leaf(rows, b, scale=0.1) for _, b in pairs))

    side = case.texels
    return TriplaneStructure(
        planes=leaf(case.num_scenes, 3, side, side, case.channels, scale=0.7),
        sdf_decoder=decoder((case.channels, *case.sdf_hidden, 1)),
        colour_decoder=decoder((case.channels, *case.colour_hidden, 3)),
        sdf_scale=SDF_SCALE,
        sphere_radius=SPHERE_RADIUS,
        density_kind=case.kind,
    )


def rays(case: Case, dtype: torch.dtype, device: torch.device | str) -> dict[str, Any]:
    """Views from outside that look at the centre; the first and last pixel miss the box."""
    shape = (len(case.scene), case.height, case.width, 3)
    origins = torch.tensor([2.0, 0.5, 0.25]) + 0.2 * torch.randn(shape[0], 1, 1, 3)
    origins = origins.expand(shape)
    directions = -origins + case.spread * torch.randn(shape)
    directions[:, 0, 0] = directions[:, -1, -1] = origins[:, 0, 0]
    directions = torch.nn.functional.normalize(directions, dim=-1)
    near, far = intersect_box(origins, directions)
    found = {"origins": origins, "directions": directions, "near": near, "far": far}
    found = {name: value.to(device, dtype) for name, value in found.items()}
    return {**found, "scene": torch.tensor(case.scene, device=device)}


def leaves(made: TriplaneStructure) -> dict[str, Tensor]:
    """Everything that a gradient is asked for, by name."""
    found = {"planes": made.planes}
    for name, decoder in (("sdf", made.sdf_decoder), ("colour", made.colour_decoder)):
        for layer, (weight, bias) in enumerate(zip(decoder.weights, decoder.biases, strict=True)):
            found |= {f"{name}.weight{layer}": weight, f"{name}.bias{layer}": bias}
    return found


def with_leaves(made: TriplaneStructure, values: Sequence[Tensor]) -> TriplaneStructure:
    """The structure with other tensors, in the order of `leaves`."""
    rest = iter(values[1:])
    decoders = []
    for decoder in (made.sdf_decoder, made.colour_decoder):
        pairs = [(next(rest), next(rest)) for _ in decoder.weights]
        decoders.append(MLPWeights(tuple(w for w, _ in pairs), tuple(b for _, b in pairs)))
    return replace(made, planes=values[0], sdf_decoder=decoders[0], colour_decoder=decoders[1])


def results(
    run: Callable[[], Any], made: TriplaneStructure, differentiable: Sequence[str]
) -> dict[str, Tensor]:
    """Outputs by name and the gradient of a random sum of those named, by leaf."""
    out = run()._asdict()
    found = {name: value.detach() for name, value in out.items() if value is not None}
    torch.manual_seed(1)
    loss = torch.zeros((), dtype=made.planes.dtype, device=made.planes.device)
    for name in differentiable:
        weights = torch.randn(out[name].shape, dtype=torch.float64).float()
        loss = loss + (weights.to(out[name]) * out[name]).sum()
    named = leaves(made)
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    for (name, leaf), grad in zip(named.items(), grads, strict=True):
        found[f"d {name}"] = torch.zeros_like(leaf) if grad is None else grad
    return found


def worst(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Largest difference relative to the largest expected value of the same tensor."""
    assert found.keys() == expected.keys()
    errors = []
    for name, value in found.items():
        assert value.shape == expected[name].shape, name
        wanted = expected[name].to(value)
        scale = wanted.abs().max().clamp_min(torch.finfo(value.dtype).tiny)
        errors.append(float((value - wanted).abs().max() / scale))
        assert torch.isfinite(value).all(), name
    return max(errors)


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nobody has written reads as NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            # On a GPU the fused gradients of planes say that they do not repeat.
            warnings.filterwarnings("ignore", ".*adds with atomics", UserWarning)
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def alerts(monkeypatch: Any, module: Any) -> list[str]:
    """Where the ops of `module` will be listed that say that their sums do not repeat."""
    found: list[str] = []
    monkeypatch.setattr(
        module, "alert_not_deterministic", lambda op, tensor, advice: found.append(op)
    )
    return found
