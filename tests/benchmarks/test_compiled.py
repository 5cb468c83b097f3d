"""Reading a disassembly."""

from __future__ import annotations

from benchmarks.compiled import read_listing
from benchmarks.compiled_kernels import markdown

LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/              @!P0 FADD R5, R4, R5 ;
        /*0030*/              @P1 BRA `(.L_x_0) ;
        /*0040*/                   EXIT ;
.L_x_1:
        /*0050*/                   BRA `(.L_x_1);
        /*0060*/                   NOP;
"""


def test_opcodes_and_the_longest_loop():
    opcodes, loop = read_listing(LISTING)
    assert opcodes == ["MOV", "LDG.E.128", "FADD", "BRA", "EXIT", "BRA"]
    assert loop == 3


def test_without_a_loop_the_whole_kernel_counts():
    straight = LISTING.replace("@P1 BRA `(.L_x_0)", "FMUL R5, R5, R5")
    assert read_listing(straight)[1] == 6


def test_a_table_names_both_targets_where_they_differ():
    figures = {
        "registers": 32,
        "stack_bytes": 0,
        "shared_bytes": 0,
        "instructions_a_sample": 6.2,
        "vector_red": 8,
        "tensor_core": 0,
    }
    row = {"kernel": "k", "warps": 4, "sm_90": figures, "sm_80": {**figures, "vector_red": 0}}
    assert markdown([row]).splitlines()[2] == "| k | 4 | 32 | 0 | 0 | 6.2 | 8 (0) | 0 |"
