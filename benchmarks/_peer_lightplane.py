"""Lightplane's fused renderer on our workloads (Cao et al., 3DV 2025; its decoder takes 3 MLPs).

A point's summed plane features go through a trunk, then through one head for the density, softplus
of its output, and one for the colour, a sigmoid. The trunk ends with a ReLU, so that one layer as
wide as the first layers of two separate decoders together, and heads that each read their half,
compute what our two decoders do. Samples: its n distances include near and far and stand for
(far - near) / (n - 1) each, ours are the middles of n strata; half a stratum off both ends makes
them the same. Beyond the outermost texels' middles its features fade to zero while ours stay:
comparisons keep to rays whose samples all lie within.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks._cases import BETA, RENDERS, Case, RenderSize, View, decoders, smallest, views
from benchmarks._peers import Build, Comparison, PeerCase, Theirs
from scaledreamer.interfaces import MLPWeights, TriplaneStructure
from scaledreamer.kernels.render_triplane import Stratified, render_triplane

FLAT = 1e9
"""sdf_scale at which our density has no sphere in it: softplus of the decoder's output."""
RADIUS = 0.6
Mlp = list[tuple[Tensor, Tensor]]
"""Weight [a, b] and bias [b] of each layer."""
Split = Callable[[Sequence[Tensor]], tuple[Mlp, Mlp, Mlp]]
"""Leaves without planes to trunk, density head and colour head."""


@dataclass(frozen=True)
class Trunk:
    """Layers of trunk and of each head, all hidden ones of one width."""

    trunk: int
    heads: int
    width: int

    @property
    def name(self) -> str:
        return f"{self.trunk}+{self.heads}+{self.heads} x {self.width}"


def lightplane_cases(is_small: bool) -> list[PeerCase]:
    """W0 as published, and W0 and W1 as the same function as ours."""
    sizes = {name: RENDERS[name] for name in ("W0", "W1")}
    if is_small:
        sizes = {name: smallest(size) for name, size in sizes.items()}
    published, plain = Trunk(2, 2, 32), Trunk(1, 1, 64)
    trunks = "function differs: {} with a shared trunk; ours has two decoders of {} hidden layer(s)"
    rows = [
        _trunk("W0", sizes["W0"], published, trunks.format(published.name, 2)),
        _joint("W0", sizes["W0"], is_ball=False),
        _trunk("W1", sizes["W1"], plain, trunks.format(plain.name, 1)),
        _joint("W1", sizes["W1"], is_ball=False),
        _joint("W1", sizes["W1"], is_ball=True),
    ]
    if is_small:  # interpreted, each takes seconds
        return [rows[0], _without_asserts(rows[3])]
    return [one for row in rows for one in (row, _without_asserts(row))]


def _joint(workload: str, size: RenderSize, is_ball: bool) -> PeerCase:
    """The function of ours: both first layers side by side as trunk."""
    num_layers = len(size.hidden) + 1
    split = partial(_halves, num_layers=num_layers)
    near_size = _inside(size)
    kind = "ball" if is_ball else "random"
    layers = Trunk(1, num_layers - 1, 2 * size.hidden[0])
    return PeerCase(
        peer="lightplane",
        package="lightplane",
        form=f"lightplane {layers.name}",
        ours=_ours(f"{workload} softplus {kind}", size, views(size), num_layers, is_ball),
        theirs=_theirs(size, views(size), split),
        comparisons=(
            Comparison(
                leaves=partial(_leaves, near_size, is_ball),
                ours=_ours("", near_size, _close(near_size), num_layers, is_ball).run,
                theirs=_theirs(near_size, _close(near_size), split),
            ),
        ),
        prepare=_prepare,
    )


def _trunk(workload: str, size: RenderSize, layers: Trunk, note: str) -> PeerCase:
    """A decoder that ours can only express with the trunk twice, and only in the reference."""
    near_size = _inside(size)
    split = partial(_as_listed, layers=layers)
    num_layers = layers.trunk + layers.heads

    def twice(leaves: Sequence[Tensor], precision: str) -> Sequence[Tensor]:
        planes, *flat = leaves
        trunk, density, colour = _thirds(flat, layers)
        return reference.run([planes, *trunk, *density, *trunk, *colour], precision)

    reference = _ours("", near_size, _close(near_size), num_layers, is_ball=False)
    hidden = len(size.hidden) + 1
    return PeerCase(
        peer="lightplane",
        package="lightplane",
        form=f"lightplane {layers.name}",
        ours=_ours(f"{workload} softplus random", size, views(size), hidden, is_ball=False),
        theirs=_theirs(size, views(size), split),
        comparisons=(
            Comparison(
                leaves=partial(_trunk_leaves, near_size, layers),
                ours=twice,
                theirs=_theirs(near_size, _close(near_size), split),
            ),
        ),
        note=note,
        leaves=partial(_trunk_leaves, size, layers),
        prepare=_prepare,
    )


def _without_asserts(case: PeerCase) -> PeerCase:
    """Its backward pass asserts that gradients are finite, "to remove for speed": without them."""

    def strip(build: Build) -> Build:
        return lambda package, device: build(_stripped(package), device)

    return replace(
        case,
        form=f"{case.form}, no asserts",
        theirs=strip(case.theirs),
        comparisons=tuple(replace(one, theirs=strip(one.theirs)) for one in case.comparisons),
    )


@cache
def _stripped(package: ModuleType) -> ModuleType:
    """The package with a renderer whose module was compiled as by `python -O`."""
    # its function of the same name hides the module
    module: Any = sys.modules[f"{package.__name__}.lightplane_renderer"]
    code = compile(Path(module.__file__).read_text(), module.__file__, "exec", optimize=1)
    names = dict(vars(module))
    exec(code, names)
    out = ModuleType(package.__name__)
    vars(out).update(vars(package), lightplane_renderer=names["lightplane_renderer"])
    return out


def _prepare(root: Path) -> None:
    # Triton >= 3 refuses the plain globals that its kernels read
    os.environ.setdefault("TRITON_ALLOW_NON_CONSTEXPR_GLOBALS", "1")
    # cog, which writes its kernels, opens files there
    sources = root / "lightplane" / "triton_src"
    if sources.is_dir():
        (sources / "generated").mkdir(exist_ok=True)


def _inside(size: RenderSize) -> RenderSize:
    """As many samples and as wide decoders, few rays."""
    return replace(size, views=1, image_px=min(size.image_px, 8))


def _close(size: RenderSize) -> View:
    """Rays of which every sample lies within the outermost texels' middles."""
    whole = views(size)
    reach = 1.0 - 1.0 / size.plane_px

    @cache
    def view(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        _, directions, near, _, scene = whole(device, dtype)
        middles = torch.rand(directions.shape, generator=torch.Generator().manual_seed(3)) - 0.5
        near = torch.ones_like(near)
        # no coordinate of a middle, nor half the stretch beside it, is more than reach / 2
        origins = reach * middles.to(directions) - (1.0 + reach / 2) * directions
        return origins, directions, near, near + reach, scene

    return view


def _leaves(
    size: RenderSize, is_ball: bool, device: torch.device, generator: torch.Generator
) -> list[Tensor]:
    """Planes, and one pair of decoders for all scenes, as Lightplane has it."""
    shape = (size.scenes, 3, size.plane_px, size.plane_px, size.channels)
    planes = torch.randn(shape, generator=generator).to(device)
    flat, num_layers = decoders(replace(size, scenes=1), device, generator)
    if is_ball:
        _make_ball(planes, flat[: 2 * num_layers])
    return [planes, *flat]


def _make_ball(planes: Tensor, flat: list[Tensor]) -> None:
    """A density that is high within RADIUS: channel 0 adds up to |x|^2, unit 0 passes it on."""
    size = planes.shape[2]
    where = (torch.arange(size, device=planes.device) + 0.5) * (2 / size) - 1
    planes[..., 0] = (where.square()[:, None] + where.square()) / 2
    for layer, (weight, bias) in enumerate(_layers_of(flat)):
        is_last = 2 * layer == len(flat) - 2
        if is_last:
            weight.mul_(0.01)
            bias.fill_(-6.0)
        else:
            weight[:, 0] = 0.0
        weight[0] *= 0.0
        weight[0, 0] = -1.0 if layer == 0 else 400.0 if is_last else 1.0
        if layer == 0:
            bias[0] = RADIUS**2


def _trunk_leaves(
    size: RenderSize, layers: Trunk, device: torch.device, generator: torch.Generator
) -> list[Tensor]:
    planes = _leaves(size, False, device, generator)[0]
    flat = []
    hidden = [layers.width] * (layers.heads - 1)
    trunk = [size.channels] + [layers.width] * layers.trunk
    for widths in (trunk, [layers.width, *hidden, 1], [layers.width, *hidden, 3]):
        for a, b in pairwise(widths):
            weight = torch.randn(1, a, b, generator=generator) * (2 / a) ** 0.5
            flat += [weight.to(device), torch.zeros(1, b, device=device)]
    return [planes, *flat]


def _ours(workload: str, size: RenderSize, view: View, num_layers: int, is_ball: bool) -> Case:
    """Our renderer on a plain density and decoders that scenes share."""

    def run(leaves: Sequence[Tensor], precision: str) -> Sequence[Tensor]:
        planes, *flat = leaves
        first, second = flat[: 2 * num_layers], flat[2 * num_layers :]
        structure = TriplaneStructure(
            planes=planes,
            sdf_decoder=MLPWeights(tuple(first[::2]), tuple(first[1::2])),
            colour_decoder=MLPWeights(tuple(second[::2]), tuple(second[1::2])),
            sdf_scale=FLAT,
            sphere_radius=0.0,
            density_kind="density",
        )
        out = render_triplane(
            structure,
            *view(planes.device, planes.dtype),
            beta=BETA,
            samples=Stratified(size.samples, 0.5),
            precision=precision,  # type: ignore[arg-type]
        )
        return out.rgb, out.opacity, out.depth

    return Case(
        op="render_triplane",
        workload=workload,
        units=size.units,
        leaves=partial(_leaves, size, is_ball),
        run=run,
        precisions=("bf16", "tf32", "accurate"),
    )


def _layers_of(flat: Sequence[Tensor]) -> Mlp:
    return [(weight[0], bias[0]) for weight, bias in zip(flat[::2], flat[1::2], strict=True)]


def _halves(flat: Sequence[Tensor], num_layers: int) -> tuple[Mlp, Mlp, Mlp]:
    density, colour = (
        _layers_of(part) for part in (flat[: 2 * num_layers], flat[2 * num_layers :])
    )
    trunk = [tuple(torch.cat(pair, dim=-1) for pair in zip(density[0], colour[0], strict=True))]
    heads = []
    for number, layers in enumerate((density, colour)):
        weight, bias = layers[1]
        rows = [torch.zeros_like(weight), torch.zeros_like(weight)]
        rows[number] = weight
        heads.append([(torch.cat(rows), bias), *layers[2:]])
    return trunk, *heads  # type: ignore[return-value]


def _thirds(flat: Sequence[Tensor], layers: Trunk) -> tuple[Sequence[Tensor], ...]:
    first, second = 2 * layers.trunk, 2 * (layers.trunk + layers.heads)
    return flat[:first], flat[first:second], flat[second:]


def _as_listed(flat: Sequence[Tensor], layers: Trunk) -> tuple[Mlp, Mlp, Mlp]:
    trunk, density, colour = (_layers_of(part) for part in _thirds(flat, layers))
    return trunk, density, colour


def _theirs(size: RenderSize, view: View, split: Split) -> Build:
    def build(package: Any, device: torch.device) -> Theirs:
        origins, directions, near, far, scene = view(device, torch.float32)
        half = (far - near) / (2 * size.samples)
        shape = near.shape
        texels = size.plane_px
        sides = ([1, texels, texels], [texels, 1, texels], [texels, texels, 1])  # xy, xz, yz
        sizes = [[size.scenes, *side, size.channels] for side in sides]
        widths: list[Tensor] = []

        def convert(leaves: Sequence[Tensor]) -> list[Tensor]:
            planes, *flat = leaves
            # weights and biases of trunk, density and colour: lists, it pads the last of them
            mlps = [[list(many) for many in zip(*mlp, strict=True)] for mlp in split(flat)]
            vector, *found = package.flatten_decoder_params(*(one for mlp in mlps for one in mlp))
            widths[:] = [value.cpu() for value in found]  # read on the CPU, call by call
            grid = planes.transpose(0, 1).reshape(-1, size.channels)
            return [grid.contiguous(), vector]

        def run(own: Sequence[Tensor]) -> Sequence[Tensor]:
            grid, vector = own
            return package.lightplane_renderer(
                rays(int(widths[0][-1])),
                grid,
                package.DecoderParams(vector, *widths, 3),
                num_samples=size.samples,
                gain=1.0,
                grid_sizes=sizes,
            )

        @cache
        def rays(width: int) -> Any:
            return package.Rays(
                directions=directions.reshape(-1, 3),
                origins=origins.reshape(-1, 3),
                grid_idx=scene[:, None, None].expand(shape).reshape(-1),
                near=(near + half).reshape(-1),
                far=(far - half).reshape(-1),
                encoding=torch.zeros(near.numel(), width, device=device),
            )

        def as_ours(outputs: Sequence[Tensor]) -> Sequence[Tensor]:
            depth, log_light, colour = outputs
            opacity = 1 - torch.exp(-log_light)
            return colour.reshape(*shape, 3), opacity.reshape(shape), depth.reshape(shape)

        return Theirs(convert, run, as_ours)

    return build
