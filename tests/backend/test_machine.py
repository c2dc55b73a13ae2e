"""Instruction sets from the text of /proc/cpuinfo."""

import pytest

from elasticlm.machine import instruction_sets

X86 = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu sse4_2 {}\nbugs\t\t: spectre_v1 avx_vnni\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd aes asimddp sve i8mm\nCPU implementer\t: 0x41\n"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (
            X86.format("avx2 avx512f avx512bw avx512_bf16 avx512_vnni amx_bf16 amx_tile amx_int8"),
            ("avx2", "avx512", "avx512_bf16", "avx512_vnni", "amx_int8", "amx_bf16"),
        ),
        (X86.format("avx avx2"), ("avx2",)),
        (X86.format("avx avx2 avx_vnni"), ("avx2", "avx_vnni")),
        (X86.format("avx"), ()),
        (X86.format("avx2") + X86.format("avx2 avx512f"), ("avx2",)),  # the first core's line counts
        (ARM, ("neon", "dotprod", "i8mm", "sve")),
        ("", ()),
        ("flags\n", ()),
    ],
    ids=["avx512_vnni and amx", "avx2 only", "avx_vnni", "none known", "two cores", "arm", "empty", "no colon"],
)
def test_instruction_sets_are_read_from_flags_or_features(cpuinfo, expected):
    assert instruction_sets(cpuinfo) == expected
