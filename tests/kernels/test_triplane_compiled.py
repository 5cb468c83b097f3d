"""The triplane kernels compiled for GPUs that are not there: spills, memory and instructions."""

from __future__ import annotations

import pytest

# Bytes of spills a thread, of shared memory a program, and instructions a sample, prologue
# included, of the default generator's sizes; by kernel, precision and compute capability. A window
# beside the direct scatter counts both branches, of which a tile takes one.
BUDGETS = {
    ("render_forward", "bf16", 90): (0, 3072, 104),  # 0, 100 as compiled
    ("render_forward", "tf32", 90): (40, 6144, 121),  # 32, 115 as compiled
    ("render_forward normals", "bf16", 90): (40, 3072, 150),  # 32, 144 as compiled
    ("render_forward normals", "tf32", 90): (144, 10240, 180),  # 136, 172 as compiled
    ("render_forward drawn, cut", "bf16", 90): (0, 3072, 126),  # 0, 120 as compiled
    ("render_backward", "bf16", 90): (424, 12288, 286),  # 408, 275 as compiled
    ("render_backward", "tf32", 90): (1168, 38912, 341),  # 1120, 328 as compiled
    ("render_backward direct", "bf16", 90): (248, 12288, 210),  # 232, 202 as compiled
    ("query_forward", "bf16", 90): (0, 3072, 47),  # 0, 45 as compiled
    ("query_forward", "tf32x3", 90): (0, 12288, 89),  # 0, 85 as compiled
    ("query_forward colour", "bf16", 90): (0, 4096, 69),  # 0, 66 as compiled
    ("query_forward colour", "tf32x3", 90): (0, 12288, 150),  # 0, 144 as compiled
    ("query_backward gradient", "tf32x3", 90): (1520, 65536, 437),  # 1456, 420 as compiled
    ("query_backward all", "bf16", 90): (1008, 20480, 246),  # 968, 236 as compiled
    ("render_forward", "bf16", 80): (0, 4096, 112),  # 0, 107 as compiled
    ("render_forward", "tf32", 80): (0, 6144, 128),  # 0, 122 as compiled
    ("render_forward normals", "bf16", 80): (224, 8192, 170),  # 216, 163 as compiled
    ("render_forward normals", "tf32", 80): (456, 8192, 195),  # 432, 187 as compiled
    ("render_forward drawn, cut", "bf16", 80): (0, 4096, 135),  # 0, 130 as compiled
    ("render_backward", "bf16", 80): (1136, 12288, 381),  # 1088, 366 as compiled
    ("render_backward", "tf32", 80): (1392, 36864, 437),  # 1336, 420 as compiled
    ("render_backward direct", "bf16", 80): (1216, 12288, 311),  # 1168, 298 as compiled
    ("query_forward", "bf16", 80): (0, 4096, 51),  # 0, 48 as compiled
    ("query_forward", "tf32x3", 80): (0, 8192, 101),  # 0, 97 as compiled
    ("query_forward colour", "bf16", 80): (0, 4096, 80),  # 0, 76 as compiled
    ("query_forward colour", "tf32x3", 80): (0, 8192, 187),  # 0, 179 as compiled
    ("query_backward gradient", "tf32x3", 80): (2576, 32768, 604),  # 2472, 580 as compiled
    ("query_backward all", "bf16", 80): (1768, 8192, 400),  # 1696, 384 as compiled
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
        max_registers=max_registers(one),
    )
    stack, shared_bytes, instructions = budget
    assert made.stack_bytes <= stack
    assert made.shared_bytes <= shared_bytes
    assert len(made.instructions) * one.num_warps / one.samples_per_loop <= instructions
    # Tensor cores are used and no atomic returns a value. From 9.0 on, a thread adds its four
    # channels of a texel at once: 3 planes x 4 corners x 2 rows, and 3 x 2 texels of a window.
    assert made.count("HGMMA|HMMA")
    assert made.count("ATOM") == 0
    num_reductions = 30 if kernel == "render_backward" else 24 if "backward" in kernel else 0
    if capability < 90:
        num_reductions = 0
    assert made.count("REDG?.*F32x4") == num_reductions
    if capability >= 90:
        assert made.count("RED") == num_reductions
