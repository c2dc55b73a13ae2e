"""Instruction sets from the text of /proc/cpuinfo, and quotas of control groups."""

import pytest

from elasticlm.machine import cores, cpu_quotas, instruction_sets

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


def control_groups(folder, files):
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("membership", "files", "quotas"),
    [
        ("0::/", {"cpu.max": "200000 100000\n"}, [2.0]),
        ("0::/", {"cpu.max": "max 100000\n"}, []),
        ("0::/", {}, []),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000", "cpu.max": "max 100000"}, [0.5]),
        ("0::/a/b", {"a/b/cpu.max": "150000 100000", "a/cpu.max": "300000 100000"}, [1.5, 3.0]),
        ("0::/not/seen/here", {"cpu.max": "100000 100000"}, [1.0]),
        ("4:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "250000", "cpu/a/cpu.cfs_period_us": "100000"}, [2.5]),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, []),
        ("3:memory:/a", {"cpu/a/cpu.cfs_quota_us": "250000", "cpu/a/cpu.cfs_period_us": "100000"}, []),
        ("0::/", {"cpu.max": "nonsense"}, []),
    ],
)  # fmt: skip
def test_quotas_of_all_groups_above_the_process_count(tmp_path, membership, files, quotas):
    control_groups(tmp_path, files)
    (tmp_path / "membership").write_text(membership + "\n")
    assert cpu_quotas(tmp_path / "cgroup", tmp_path / "membership") == quotas


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert cpu_quotas(tmp_path, tmp_path / "nothing") == []


@pytest.mark.parametrize(("quotas", "expected"), [([], 8), ([2.5, 16.0], 3), ([0.2], 1)])
def test_cores_are_those_that_may_be_used_and_no_more_than_the_quota(monkeypatch, quotas, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr("elasticlm.machine.cpu_quotas", lambda: quotas)
    assert cores() == expected
