"""Kernels compiled for a GPU without one: registers, spills, shared memory, instructions.

Needs triton and runs without TRITON_INTERPRET: an interpreted kernel can't be compiled.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TARGETS = (80, 90)
"""Compute capabilities that are checked: A100 and H100."""


@dataclass(frozen=True)
class Compiled:
    """What the assembler made of one kernel; bytes are those of one thread or one program."""

    registers: int
    stack_bytes: int
    """Local memory of a thread: spills."""
    shared_bytes: int
    """Shared memory of a program."""
    instructions: tuple[str, ...]
    """Opcodes with modifiers, in order, as `REDG.E.ADD.F32x4...`."""
    loop_instructions: int
    """Those of the longest loop; of the whole kernel when it has none."""

    def count(self, pattern: str) -> int:
        """How many instructions match the regular expression from their start."""
        return sum(re.match(pattern, name) is not None for name in self.instructions)


def compile_kernel(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    capability: int,
    num_warps: int = 4,
    num_stages: int = 1,
    max_registers: int | None = None,
) -> Compiled:
    """Ahead-of-time compilation; pointers (`*fp32`, ...) count as aligned to 16 bytes.

    `signature` names every argument in order with its Triton type, "constexpr" for those whose
    values `constexprs` gives. Integer arguments ending in `_x16` count as multiples of 16.
    `max_registers` is a launch's `maxnreg`; None leaves it to the assembler.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(signature)
    aligned = [
        (index,)
        for index, name in enumerate(names)
        if signature[name].startswith("*") or name.endswith("_x16")
    ]
    source = ASTSource(
        fn=kernel,
        signature=dict(signature),
        constexprs=dict(constexprs),
        attrs={index: [["tt.divisibility", 16]] for index in aligned},
    )
    made = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps, "num_stages": num_stages, "maxnreg": max_registers},
    )
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(made.asm["cubin"])
        usage = _run("cuobjdump", "--dump-resource-usage", str(cubin))
        listing = _run("nvdisasm", "-c", str(cubin))
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED):(\d+)", usage)}
    opcodes, loop = read_listing(listing)
    shared = max(found["SHARED"], int(made.metadata.shared))
    return Compiled(found["REG"], found["STACK"], shared, tuple(opcodes), loop)


_LINE = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)(.*)")


def read_listing(listing: str) -> tuple[list[str], int]:
    """Opcodes of a disassembly, and how many the longest backward jump spans."""
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    longest = 0
    for line in listing.splitlines():
        label = re.match(r"(\.L_x_\d+):", line)
        if label:
            labels[label[1]] = len(opcodes)
            continue
        match = _LINE.match(line)
        if match is None or match[1] == "NOP":
            continue
        opcodes.append(match[1])
        target = re.search(r"`\((\.L_x_\d+)\)", match[2])
        if match[1].startswith("BRA") and target and target[1] in labels:
            longest = max(longest, len(opcodes) - labels[target[1]])
    # every kernel ends in a jump to itself
    return opcodes, longest if longest > 1 else len(opcodes)


@cache
def _tools() -> Path:
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def _run(tool: str, *arguments: str) -> str:
    command = [str(_tools() / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
