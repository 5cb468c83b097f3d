"""The specialisations of the triplane kernels that are compiled for GPUs ahead of time."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Every kernel in bfloat16 and tf32, at two sizes: the default generator's, and 32 channels
    with one hidden layer of 64. Backward queries are those of a loss that sees the gradient too.
    """
    import triton.language as tl

    from scaledreamer.kernels._triplane.structure import packed_size
    from scaledreamer.kernels.field_query import fused as query
    from scaledreamer.kernels.render_triplane import fused as render

    found: list[Specialisation] = []
    sizes = {"c16_32_32": (16, 32, 32, 2), "c32_64": (32, 64, 64, 1)}
    for size, (channels, sdf, colour, layers) in sizes.items():
        for precision in ("bf16", "tf32"):
            shared = {"C": channels, "HS": sdf, "HC": colour, "LAYERS": layers}
            shared |= {"IS_DENSITY": False, "PRECISION": precision, "ACC": tl.float32}
            drawn = {**shared, "MODE": render.DRAWN.value, "samples": None}
            asked = {**shared, "WITH_COLOUR": True, "WITH_GRADIENT": False}
            packed = {"SIZE": packed_size(channels, sdf, colour, layers)}
            for kind, kernel, constants, warps in (
                (
                    "render_forward",
                    render.render_forward,
                    {**drawn, "WITH_NORMALS": False, "CUT": True},
                    render.WARPS,
                ),
                ("render_backward", render.render_backward, {**drawn, **packed}, render.WARPS),
                ("query_forward", query.query_forward, asked, query.WARPS),
                (
                    "query_backward",
                    query.query_backward,
                    {**asked, **packed, "WITH_GRADIENT": True},
                    query.WARPS,
                ),
            ):
                signature = _signature(kernel, constants, precision)
                name = f"{kind}/{size}_{precision}"
                found.append(Specialisation(name, kernel, signature, constants, warps, 64))
    return found


def max_registers(kernel: Any) -> int:
    """What the launch of a kernel allows a thread."""
    from scaledreamer.kernels._triplane.fused import BACKWARD_REGISTERS
    from scaledreamer.kernels.field_query import fused as query
    from scaledreamer.kernels.render_triplane import fused as render

    forward = {
        render.render_forward: render.FORWARD_REGISTERS,
        query.query_forward: query.FORWARD_REGISTERS,
    }
    return forward.get(kernel, BACKWARD_REGISTERS)


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
