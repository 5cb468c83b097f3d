"""What is run of other projects, and how their arguments and results become ours.

nerfacc 0.5.3 (Li et al., ICCV 2023): weights from densities, then accumulation. torch-ngp's
gridencoder: its entries lie as ours where its corners are aligned and a level has one cell less
than its "resolution"; of several levels only the coarsest and the finest can be made equal.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._cases import (
    COMPOSITED,
    POINTS,
    TABLES,
    composite_case,
    hash_case,
    points_of,
    steps_of,
)
from benchmarks._peer_lightplane import lightplane_cases
from benchmarks._peers import Comparison, PeerCase, Theirs
from scaledreamer.kernels.hash_encode import HashLevels

COMPARED = 4096
"""Points and samples of a comparison."""


def peer_cases(is_small: bool, is_cpu: bool) -> list[PeerCase]:
    """All of them, of the sizes of `_cases.cases`."""
    points = {"64": 64} if is_small else {"131k": 131_072} if is_cpu else POINTS
    samples = points if is_small or is_cpu else COMPOSITED
    tables = {name: TABLES[name] for name in ("L16F2T19", "L16F2T14")}
    if is_cpu:
        del tables["L16F2T19"]
    if is_small:
        tables = {"L2F2T8": (HashLevels(num_levels=2, log2_table_size=8), 2)}
    out = lightplane_cases(is_small)
    out += [
        _gridencoder(f"{table} {name} {kind}", *tables[table], count, kind == "rays")
        for table in tables
        for name, count in points.items()
        for kind in ("uniform", "rays")
    ]
    out += [
        _nerfacc(f"{name} samples {kind}", count // 64, kind == "sphere", is_packed)
        for name, count in samples.items()
        for kind in ("random", "sphere")
        for is_packed in (False, True)
    ]
    return out


def _nerfacc(workload: str, num_rays: int, is_sphere: bool, is_packed: bool) -> PeerCase:
    shape = (max(num_rays, 1), 64)
    few = (COMPARED // 64, 64)
    small = composite_case("", *few, is_sphere)
    build = _packed if is_packed else _batched
    return PeerCase(
        peer="nerfacc",
        package="nerfacc",
        form="nerfacc packed" if is_packed else "nerfacc batched",
        ours=composite_case(workload, *shape, is_sphere),
        theirs=partial(build, shape),
        comparisons=(Comparison(small.leaves, small.run, partial(build, few)),),
    )


def _batched(shape: tuple[int, int], package: Any, device: torch.device) -> Theirs:
    lengths, distances = steps_of(*shape, device, torch.float32)
    starts = distances - lengths

    def run(own: Sequence[Tensor]) -> Sequence[Tensor]:
        density, colours = own
        weights, _, _ = package.render_weight_from_density(starts, distances, density)
        values = (colours, None, distances[..., None])
        return [package.accumulate_along_rays(weights, value) for value in values]

    return Theirs(list, run, _pixels)


def _packed(shape: tuple[int, int], package: Any, device: torch.device) -> Theirs:
    """Samples of all rays in one row with their rays' numbers, as an occupancy grid gives them."""
    lengths, distances = (one.flatten() for one in steps_of(*shape, device, torch.float32))
    starts = distances - lengths
    ray = torch.arange(shape[0], device=device).repeat_interleave(shape[1])

    def run(own: Sequence[Tensor]) -> Sequence[Tensor]:
        density, colours = own
        whose = {"ray_indices": ray, "n_rays": shape[0]}
        weights, _, _ = package.render_weight_from_density(starts, distances, density, **whose)
        values = (colours, None, distances[:, None])
        return [package.accumulate_along_rays(weights, value, **whose) for value in values]

    def convert(leaves: Sequence[Tensor]) -> list[Tensor]:
        return [leaf.flatten(0, 1) for leaf in leaves]

    return Theirs(convert, run, _pixels)


def _pixels(outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    rgb, opacity, depth = outputs
    return rgb, opacity[..., 0], depth[..., 0]


def _gridencoder(
    workload: str, levels: HashLevels, features: int, count: int, along_rays: bool
) -> PeerCase:
    case = hash_case(workload, levels, features, count, along_rays)
    return PeerCase(
        peer="torch-ngp",
        package="gridencoder",
        form="torch-ngp gridencoder",
        ours=case,
        theirs=partial(_all_levels, levels, features, count, along_rays),
        comparisons=tuple(
            _level(levels, number, features, along_rays) for number in range(levels.num_levels)
        ),
        note="compared level by level; timed with all levels in one call, those between coarsest "
        "and finest up to 4 % finer than ours, entries padded to eights",
        prepare=_compile_gridencoder,
    )


def _level(levels: HashLevels, number: int, features: int, along_rays: bool) -> Comparison:
    """One level alone, where both have the same cells, entries and hash."""
    cells = levels.resolutions[number]
    one = HashLevels(
        num_levels=1,
        log2_table_size=levels.log2_table_size,
        base_resolution=cells,
        finest_resolution=cells,
    )
    few = (features, COMPARED, along_rays)
    case = hash_case("", one, *few)
    return Comparison(case.leaves, case.run, partial(_all_levels, one, *few))


def _all_levels(
    levels: HashLevels,
    features: int,
    count: int,
    along_rays: bool,
    package: Any,
    device: torch.device,
) -> Theirs:
    """Corners aligned: level l has `base * scale^l - 1` cells over the cube, and a vertex more."""
    base, finest = levels.base_resolution + 1, levels.finest_resolution + 1
    steps = max(levels.num_levels - 1, 1)
    encoder = package.GridEncoder(
        input_dim=3,
        num_levels=levels.num_levels,
        level_dim=features,
        per_level_scale=(finest / base) ** (1 / steps),
        base_resolution=base,
        log2_hashmap_size=levels.log2_table_size,
        gridtype="hash",
        align_corners=True,
    ).to(device)
    points = points_of(count, along_rays, device, torch.float32)
    sizes = encoder.offsets.diff().tolist()

    def convert(leaves: Sequence[Tensor]) -> list[Tensor]:
        (table,) = leaves
        parts = table.split(levels.sizes)
        pairs = zip(parts, sizes, strict=True)
        return [torch.cat([_resized(part, size) for part, size in pairs])]

    def run(own: Sequence[Tensor]) -> Sequence[Tensor]:
        # its own parameter would be another leaf than the table that is differentiated
        return [torch.func.functional_call(encoder, {"embeddings": own[0]}, (points,))]

    return Theirs(convert, run)


def _resized(rows: Tensor, size: int) -> Tensor:
    """The first `size` rows, or zeros after them; for levels that are only timed."""
    missing = max(size - len(rows), 0)
    return torch.nn.functional.pad(rows[:size], (0, 0, 0, missing))


def _compile_gridencoder(root: Path) -> None:
    """Build its extension without its flags: they ask for C++14, which today's torch refuses."""
    source = root / "gridencoder" / "src"
    if importlib.util.find_spec("_gridencoder") or not source.is_dir():
        return
    from torch.utils.cpp_extension import load

    halves = [f"-U__CUDA_NO_HALF{name}__" for name in ("_OPERATORS", "_CONVERSIONS", "2_OPERATORS")]
    extension: Any = load(
        name="_gridencoder",
        sources=[str(source / name) for name in ("gridencoder.cu", "bindings.cpp")],
        extra_cuda_cflags=["-O3", *halves],
    )
    sys.modules["_gridencoder"] = extension
