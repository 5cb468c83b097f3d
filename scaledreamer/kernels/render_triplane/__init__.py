"""Volume rendering of triplane fields, fused from rays to pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from scaledreamer.interfaces import TriplaneStructure
from scaledreamer.kernels import backend
from scaledreamer.kernels._triplane.structure import (
    PRECISIONS,
    Precision,
    check_fused,
    check_like,
    check_structure,
    pack,
)
from scaledreamer.kernels.render_triplane import reference
from scaledreamer.rng import StepRng, philox, stream_key, to_uniform


class Rendered(NamedTuple):
    """Pixels; nothing is divided by the opacity."""

    rgb: Float[Tensor, "V H W 3"]
    opacity: Float[Tensor, "V H W"]
    depth: Float[Tensor, "V H W"]
    """Weighted distance along the unit ray, metres."""
    normal: Float[Tensor, "V H W 3"] | None
    """Weighted unit vectors out of the surface, world frame; carries no gradient."""


@dataclass(frozen=True)
class Draw:
    """Offsets that a kernel draws itself: `StepRng.uniform(stream, num_rays)` of each scene.

    Ray r of a view is element `first + r` of its scene's draw.
    """

    key: tuple[int, int]
    step: int
    sample_index: Int64[Tensor, "V"]
    """Global sample index of each view's scene."""
    first: Int64[Tensor, "V"]
    """Where each view's rays begin in its scene's draw."""

    @staticmethod
    def of(rng: StepRng, stream: str, scene: Int64[Tensor, "V"], num_rays: int) -> Draw:
        """The draw of V views of `num_rays` rays; a scene's views follow one another in it."""
        same = scene[:, None] == scene[None, :]
        earlier = same.tril(-1).sum(dim=1)
        index = rng.sample_index[scene]
        return Draw(stream_key(rng.seed, stream), rng.step, index, earlier * num_rays)

    def offsets(self, near: Float[Tensor, "V H W"]) -> Float[Tensor, "V H W"]:
        """What the kernel draws."""
        rays = torch.arange(near[0].numel(), device=near.device)
        element = self.first[:, None] + rays
        index, step = (
            value.expand_as(element)
            for value in (self.sample_index[:, None], torch.tensor(self.step, device=near.device))
        )
        mask = 0xFFFFFFFF
        counter = (element // 4, index & mask, step & mask, (index >> 32) & mask)
        words = philox(counter, self.key).gather(-1, (element % 4)[..., None])[..., 0]
        return to_uniform(words).to(near.dtype).view_as(near)


@dataclass(frozen=True)
class Stratified:
    """`num` distances a ray, one in each of as many equal strata between near and far.

    All lie at the same share `offset` of their stratum: 0.5 is the middle; a tensor [V, H, W] in
    [0, 1) holds one share a ray.
    """

    num: int
    offset: float | Tensor | Draw = 0.5


def render_triplane(
    structure: TriplaneStructure,
    origins: Float[Tensor, "V H W 3"],
    directions: Float[Tensor, "V H W 3"],
    near: Float[Tensor, "V H W"],
    far: Float[Tensor, "V H W"],
    scene: Int64[Tensor, "V"],
    beta: float,
    samples: Stratified | Float[Tensor, "V H W S"],
    with_normals: bool = False,
    precision: Precision = "tf32",
    min_transmittance: float = 0.0,
) -> Rendered:
    """Render V views of B scenes; view v sees scene `scene[v]`, in any order and number.

    Directions are unit vectors. `samples` that are given are sorted and lie in [near, far]; far =
    near is a ray that misses. Each stands for the stretch between the middles to its neighbours.
    Points are clamped to the box [-1, 1]^3. `beta` (metres) is the width of the surface of a
    signed distance. `precision` is that of the fused kernel's products; the reference is always
    exact. With `min_transmittance` a patch of 4 x 4 rays is cut where less light than that is left
    on all of them, so that each opacity is too small by less than that; the reference marches on.
    Differentiable once in planes, weights and biases, from rgb, opacity and depth. The fused
    gradient of the planes is added up in no fixed order.
    Source: Yariv et al., VolSDF, NeurIPS 2021, on the quadrature of Max, 1995; marching fused as in
    Cao et al., Lightplane, 3DV 2025; ours.

    >>> from scaledreamer.interfaces import MLPWeights
    >>> sdf = MLPWeights((torch.zeros(1, 2, 1),), (torch.zeros(1, 1),))
    >>> colour = MLPWeights((torch.zeros(1, 2, 3),), (torch.zeros(1, 3),))
    >>> ball = TriplaneStructure(torch.zeros(1, 3, 4, 4, 2), sdf, colour, 0.5, 0.5)
    >>> origins, directions = torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, 3)
    >>> origins[..., 0], directions[..., 0] = 2.0, -1.0
    >>> ends, scene = (torch.ones(1, 1, 1), torch.full((1, 1, 1), 3.0)), torch.tensor([0])
    >>> out = render_triplane(ball, origins, directions, *ends, scene, 0.01, Stratified(32))
    >>> out.rgb
    tensor([[[[0.5000, 0.5000, 0.5000]]]])

    Raises:
        ValueError: shapes, dtypes or devices do not fit each other, or the fused kernel does not
            take the structure's widths; names the argument. Indices in `scene` that are out of
            range fail on a GPU by a device-side assertion that names it, without a wait.
    """
    check_structure(structure)
    _check_rays(structure.planes, origins, directions, near, far, scene)
    _check_samples(samples, near)
    _check_options(structure, beta, precision, min_transmittance)
    rays = (origins, directions, near, far)
    if backend.choose("render_triplane", structure.planes, ("reference", "triton")) == "triton":
        options = (beta, PRECISIONS[precision], with_normals, min_transmittance)
        hidden = check_fused(structure, precision)
        return _render_fused(structure, rays, scene, samples, hidden, options)
    tdist = _distances(samples, near, far)
    return Rendered(*reference.render_triplane(structure, *rays, scene, beta, tdist, with_normals))


def _render_fused(
    structure: TriplaneStructure,
    rays: tuple[Tensor, ...],
    scene: Tensor,
    samples: Stratified | Tensor,
    hidden: tuple[int, int, int],
    options: tuple[float, str, bool, float],
) -> Rendered:
    """`options` are beta, the kernel's precision, with_normals and min_transmittance."""
    from scaledreamer.kernels.render_triplane.fused import render

    rgb, opacity, depth, normal, _ = render(
        structure.planes.contiguous(),
        pack(structure),
        *(value.detach().contiguous() for value in rays),
        scene.contiguous(),
        *_fused_samples(samples),
        hidden,
        structure.density_kind == "density",
        structure.sdf_scale,
        structure.sphere_radius,
        *options,
    )
    return Rendered(rgb, opacity, depth, normal if options[2] else None)


def _distances(samples: Stratified | Tensor, near: Tensor, far: Tensor) -> Tensor:
    if isinstance(samples, Tensor):
        return samples
    offset = samples.offset
    offset = offset.offsets(near) if isinstance(offset, Draw) else offset
    return reference.stratified(near, far, samples.num, offset)


def _fused_samples(
    samples: Stratified | Tensor,
) -> tuple[Tensor | None, Tensor | None, int, int, int, float]:
    """Distances or offsets, counters, key, step, number of samples and offset for the kernel."""
    if isinstance(samples, Tensor):
        return samples.detach().contiguous(), None, 0, 0, samples.shape[-1], 0.0
    offset = samples.offset
    if isinstance(offset, Tensor):
        return offset.detach().contiguous(), None, 0, 0, samples.num, 0.0
    if not isinstance(offset, Draw):
        return None, None, 0, 0, samples.num, float(offset)
    counters = torch.stack((offset.sample_index, offset.first), dim=1)
    low, high = offset.key
    signed_high = high - (1 << 32) if high >> 31 else high
    return None, counters, (signed_high << 32) | low, offset.step, samples.num, 0.0


def _check_options(
    structure: TriplaneStructure, beta: float, precision: str, min_transmittance: float
) -> None:
    if structure.density_kind == "sdf" and beta <= 0:
        raise ValueError(f"beta: got {beta}; must be positive")
    if not 0.0 <= min_transmittance < 1.0:
        raise ValueError(f"min_transmittance: got {min_transmittance}; must lie in [0, 1)")
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}; expected one of {', '.join(PRECISIONS)}")


def _check_rays(
    planes: Tensor, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, scene: Tensor
) -> None:
    if near.dim() != 3:
        raise ValueError(f"near: got shape {tuple(near.shape)}; expected [V, H, W]")
    vectors = (*near.shape, 3)
    for name, value, shape in (
        ("near", near, near.shape),
        ("far", far, near.shape),
        ("origins", origins, vectors),
        ("directions", directions, vectors),
    ):
        _check(name, value, tuple(shape))
        check_like(name, value, "structure.planes", planes)
    _check("scene", scene, (near.shape[0],))
    if scene.dtype != torch.int64 or scene.device != planes.device:
        raise ValueError(
            f"scene: got {scene.dtype} on {scene.device}; expected int64 on {planes.device}"
        )
    _check_range(scene, len(planes))


def _check_range(scene: Tensor, num_scenes: int) -> None:
    is_known = (scene >= 0) & (scene < num_scenes)
    expected = f"expected 0 to {num_scenes - 1}, an index into structure.planes"
    if scene.device.type == "cpu" and not torch.compiler.is_compiling():
        if not is_known.all():
            raise ValueError(f"scene: got {scene[~is_known][0].item()}; {expected}")
        return
    # A ValueError would wait for the device, and break a graph that is traced.
    torch._assert_async(is_known.all(), f"scene: got an index out of range; {expected}")


def _check_samples(samples: Stratified | Tensor, near: Tensor) -> None:
    if isinstance(samples, Tensor):
        if samples.dim() != 4 or samples.shape[:3] != near.shape or samples.shape[3] < 1:
            wanted = ", ".join(map(str, near.shape))
            raise ValueError(f"samples: got shape {tuple(samples.shape)}; expected [{wanted}, S]")
        check_like("samples", samples, "near", near)
        return
    if samples.num < 1:
        raise ValueError(f"samples.num: got {samples.num}; expected at least 1")
    offset = samples.offset
    if isinstance(offset, Tensor):
        _check("samples.offset", offset, tuple(near.shape))
        check_like("samples.offset", offset, "near", near)
    elif isinstance(offset, Draw):
        for name in ("sample_index", "first"):
            value = getattr(offset, name)
            _check(f"samples.offset.{name}", value, (near.shape[0],))
            if value.dtype != torch.int64 or value.device != near.device:
                raise ValueError(
                    f"samples.offset.{name}: got {value.dtype} on {value.device}; "
                    f"expected int64 on {near.device}"
                )
    elif not 0.0 <= offset <= 1.0:
        raise ValueError(f"samples.offset: got {offset}; must lie in [0, 1]")


def _check(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}; expected {shape}")
