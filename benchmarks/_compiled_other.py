"""Which hash encoding and compositing kernels are compiled for the table of compiled kernels."""

from __future__ import annotations

from typing import Any

Specialisation = tuple[str, Any, dict[str, str], dict[str, Any], int, int]


def specialisations() -> list[Specialisation]:
    """Name, kernel, signature, constants, warps and samples of a program."""
    return [*hash_encode(), *composite()]


def hash_encode() -> list[Specialisation]:
    from scaledreamer.kernels.hash_encode import fused

    found: list[Specialisation] = []
    for features in (2, 4):
        constants = {"FEATURES": features, "BLOCK": fused._BLOCK}
        types = dict.fromkeys(constants, "constexpr")
        forward = {
            **dict.fromkeys(("table", "points", "out"), "*fp32"),
            "level_data": "*i64",
            "num_points": "i32",
            **types,
        }
        backward = {
            **dict.fromkeys(("points", "grad", "grad_table"), "*fp32"),
            "level_data": "*i64",
            **dict.fromkeys(("num_points", "stride_feature", "stride_point"), "i32"),
            **types,
        }
        for direction, kernel, signature in (
            ("forward", fused._forward_kernel, forward),
            ("backward", fused._backward_kernel, backward),
        ):
            name = f"hash_encode {direction}, F={features}"
            found.append((name, kernel, signature, constants, fused._NUM_WARPS, fused._BLOCK))
    return found


def composite() -> list[Specialisation]:
    from scaledreamer.kernels.composite import fused

    inputs = ("density", "lengths", "colours", "distances")
    sizes = dict.fromkeys(("num_rays", "num_samples"), "i32")
    outputs = ("weights", "rgb", "behind", "depth")
    incoming = ("weights", "behind", "grad_weights", "grad_rgb", "grad_behind", "grad_depth")
    outgoing = [f"grad_{name}" for name in inputs]
    flags = ("HAS_GRAD_WEIGHTS", *(f"NEEDS_{name.upper()}" for name in inputs))
    found: list[Specialisation] = []
    for _, rays, samples in fused.TILES:
        tile = {"RAYS": rays, "SAMPLES": samples}
        for direction, kernel, pointers, constants in (
            ("forward", fused._forward_kernel, (*inputs, *outputs), tile),
            (
                "backward",
                fused._backward_kernel,
                (*inputs, *incoming, *outgoing),
                {**dict.fromkeys(flags, True), **tile},
            ),
        ):
            signature = {
                **dict.fromkeys(pointers, "*fp32"),
                **sizes,
                **dict.fromkeys(constants, "constexpr"),
            }
            name = f"composite {direction}, {rays} x {samples}"
            found.append((name, kernel, signature, constants, fused._NUM_WARPS, rays * samples))
    return found
