"""The triplane kernels compiled for GPUs that are not there: spills, memory and instructions."""

from __future__ import annotations

import pytest

# Bytes of spills a thread, of shared memory a program, and instructions a sample, prologue
# included, of the default generator's sizes; by kernel, precision and compute capability.
BUDGETS = {
    ("render_forward", "bf16", 90): (0, 3072, 125),  # 0, 120 as compiled
    ("render_forward", "bf16", 80): (0, 4096, 135),  # 0, 130 as compiled
    ("render_backward", "bf16", 90): (272, 12288, 241),  # 240, 232 as compiled
    ("render_backward", "bf16", 80): (1296, 12288, 340),  # 1176, 327 as compiled
    ("render_forward", "tf32", 90): (16, 6144, 145),  # 8, 139 as compiled
    ("render_forward", "tf32", 80): (0, 6144, 153),  # 0, 147 as compiled
    ("render_backward", "tf32", 90): (848, 38912, 289),  # 760, 278 as compiled
    ("render_backward", "tf32", 80): (1280, 36864, 375),  # 1152, 360 as compiled
    ("query_forward", "bf16", 90): (0, 4096, 69),  # 0, 66 as compiled
    ("query_forward", "bf16", 80): (0, 4096, 79),  # 0, 76 as compiled
    ("query_backward", "bf16", 90): (1072, 20480, 246),  # 968, 236 as compiled
    ("query_backward", "bf16", 80): (1872, 8192, 399),  # 1696, 384 as compiled
    ("query_forward", "tf32", 90): (0, 6144, 81),  # 0, 78 as compiled
    ("query_forward", "tf32", 80): (0, 6144, 88),  # 0, 84 as compiled
    ("query_backward", "tf32", 90): (1152, 61440, 323),  # 1048, 310 as compiled
    ("query_backward", "tf32", 80): (2720, 36864, 482),  # 2472, 464 as compiled
}


@pytest.mark.parametrize(("key", "budget"), BUDGETS.items(), ids=lambda value: str(value))
def test_compiled_kernels_keep_their_budget(
    key: tuple[str, str, int], budget: tuple[int, int, int], compiler: None
) -> None:
    from benchmarks._compiled_render import max_registers, specialisations
    from benchmarks.compiled import compile_kernel

    kernel, precision, capability = key
    name = f"{kernel}/c16_32_32_{precision}"
    one = next(one for one in specialisations() if one.name == name)
    made = compile_kernel(
        one.kernel,
        one.signature,
        one.constexprs,
        capability,
        one.num_warps,
        max_registers=max_registers(one.kernel),
    )
    stack, shared_bytes, instructions = budget
    assert made.stack_bytes <= stack
    assert made.shared_bytes <= shared_bytes
    assert len(made.instructions) * one.num_warps / one.samples_per_loop <= instructions
    # Tensor cores are used and no atomic returns a value. From 9.0 on, a thread adds its four
    # channels of a texel at once: 3 planes x 4 corners x 2 rows.
    assert made.count("HGMMA|HMMA")
    assert made.count("ATOM") == 0
    num_reductions = 24 if kernel.endswith("backward") and capability >= 90 else 0
    assert made.count("REDG?.*F32x4") == num_reductions
    if capability >= 90:
        assert made.count("RED") == num_reductions
