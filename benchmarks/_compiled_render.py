"""The specialisations of the triplane kernels that are compiled for GPUs ahead of time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

INTS = (
    "height",
    "width",
    "num_samples",
    "resolution",
    "params_stride_x16",
    "programs",
    "num_points",
    "step",
)
FLOATS = ("offset", "sdf_scale", "sphere_radius", "beta", "min_transmittance")
INT64 = ("scene", "owner", "counters")


class Specialisation(NamedTuple):
    """One kernel with its constants, as `compiled.compile_kernel` takes it."""

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    samples_per_loop: int
    """Samples or points that one pass of the innermost loop computes."""


def specialisations() -> list[Specialisation]:
    """Every kernel as training and generation launch it, on signed distances, at two sizes: the
    default generator's, and 32 channels with one hidden layer of 64. Beside them what only callers
    of the kernels ask for: samples that are drawn, rays that are cut, every output of a query.
    """
    sizes = {"c16_32_32": (16, 32, 32, 2), "c32_64": (32, 64, 64, 1)}
    return [
        one for name, size in sizes.items() for one in (*_render(name, size), *_query(name, size))
    ]


def _render(name: str, size: tuple[int, int, int, int]) -> Iterator[Specialisation]:
    from scaledreamer.kernels.render_triplane import fused

    given = {"MODE": fused.GIVEN.value, "counters": None}
    drawn = {"MODE": fused.DRAWN.value, "samples": None}
    plain = {"WITH_NORMALS": False, "CUT": False}
    forward = {
        "render_forward": ({**given, **plain}, ("bf16", "tf32")),
        "render_forward normals": ({**given, **plain, "WITH_NORMALS": True}, ("bf16", "tf32")),
        "render_forward drawn, cut": ({**drawn, **plain, "CUT": True}, ("bf16",)),
    }
    backward = {
        "render_backward": ({**given, "WINDOWED": fused.WINDOWED}, ("bf16", "tf32")),
        "render_backward direct": ({**given, "WINDOWED": False}, ("bf16",)),
    }
    for kernel, table in ((fused.render_forward, forward), (fused.render_backward, backward)):
        for kind, (constants, precisions) in table.items():
            for precision in precisions:
                full = f"{kind}/{name}_{precision}"
                yield _one(full, kernel, constants, size, precision, fused.WARPS)


def _query(name: str, size: tuple[int, int, int, int]) -> Iterator[Specialisation]:
    """`accurate` (tf32x3) outside of autocast, and always for the gradient of an eikonal loss."""
    from scaledreamer.kernels.field_query import fused

    geometry = {"WITH_COLOUR": False, "WITH_GRADIENT": False}
    colour = {**geometry, "WITH_COLOUR": True}
    forward = {
        "query_forward": (geometry, ("bf16", "tf32x3")),
        "query_forward colour": (colour, ("bf16", "tf32x3")),
    }
    backward = {
        "query_backward gradient": ({**geometry, "WITH_GRADIENT": True}, ("tf32x3",)),
        "query_backward all": ({**colour, "WITH_GRADIENT": True}, ("bf16",)),
    }
    for kernel, table in ((fused.query_forward, forward), (fused.query_backward, backward)):
        for kind, (constants, precisions) in table.items():
            for precision in precisions:
                full = f"{kind}/{name}_{precision}"
                yield _one(full, kernel, constants, size, precision, fused.WARPS)


def _one(
    name: str,
    kernel: Any,
    constants: Mapping[str, Any],
    size: tuple[int, int, int, int],
    precision: str,
    num_warps: int,
) -> Specialisation:
    import triton.language as tl

    from scaledreamer.kernels._triplane.structure import packed_size

    channels, sdf, colour, layers = size
    full = {**constants, "C": channels, "HS": sdf, "HC": colour, "LAYERS": layers}
    full |= {"IS_DENSITY": False, "PRECISION": precision, "ACC": tl.float32}
    if "SIZE" in kernel.arg_names:
        full["SIZE"] = packed_size(*size)
    signature = _signature(kernel, full, precision)
    return Specialisation(name, kernel, signature, full, num_warps, 64)


def max_registers(one: Specialisation) -> int:
    """What the launch allows a thread."""
    from scaledreamer.kernels._triplane.fused import BACKWARD_REGISTERS
    from scaledreamer.kernels.field_query import fused as query
    from scaledreamer.kernels.render_triplane import fused as render

    forward = {
        render.render_forward: render.NORMAL_REGISTERS
        if one.constexprs.get("WITH_NORMALS")
        else render.FORWARD_REGISTERS,
        query.query_forward: query.FORWARD_REGISTERS,
    }
    return forward.get(one.kernel, BACKWARD_REGISTERS)


def _signature(kernel: Any, constants: Mapping[str, Any], precision: str) -> dict[str, str]:
    types: dict[str, str] = {}
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name in INTS:
            types[name] = "i32"
        elif name == "key":
            types[name] = "i64"
        elif name in FLOATS:
            types[name] = "fp32"
        elif name in INT64:
            types[name] = "*i64"
        elif name == "stop":
            types[name] = "*i32"
        else:
            types[name] = "*bf16" if (name, precision) == ("planes", "bf16") else "*fp32"
    return types
