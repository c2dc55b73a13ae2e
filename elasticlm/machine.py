"""Describe the machine on which a result was measured; every result contains this description."""

import math
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "torchserve", "faiss-cpu", "onnxruntime", "locust")


INSTRUCTION_SETS = {
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512_bf16": "avx512_bf16",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "sve": "sve",
}
"""Flags in /proc/cpuinfo that decide how fast a level runs, and their usual names."""


def machine(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """What a figure depends on: CPU, its instruction sets, cores that this process may use, Python, versions, date.

    CPUs of one name may differ by several times in speed: the instruction sets tell them apart.

    Args:
        packages: distributions whose versions are listed, where they are installed.
    """
    return {
        "cpu": _cpu(),
        "instruction_sets": list(instruction_sets(_cpuinfo())),
        "cores": cores(),
        "python": platform.python_version(),
        "versions": {name: installed for name in packages if (installed := _version(name))},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def cores() -> int:
    """Return how many cores this process can use: those that it may run on, or fewer if a control group limits it.

    A limit is a quota of processor time (``cpu.max``, ``docker run --cpus 2``); a part of a core counts as one.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([allowed, *(max(1, math.ceil(quota)) for quota in cpu_quotas())])


def cpu_quotas(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> list[float]:
    """Return the cores' worth of time that each control group above this process allows it; none if unlimited.

    Version 2 has ``cpu.max`` ("200000 100000": two cores), version 1 ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us``.
    """
    try:
        lines = membership.read_text("utf-8").splitlines()
    except OSError:
        return []
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "cpu" if controllers else root
        group = top / path.lstrip("/")
        for folder in [group, *group.parents]:
            if top in (folder, *folder.parents) and (quota := _quota(folder)) is not None:
                quotas.append(quota)
    return quotas


def _quota(group: Path) -> float | None:
    try:
        if (file := group / "cpu.max").is_file():
            limit, period = file.read_text("utf-8").split()
        else:
            limit = (group / "cpu.cfs_quota_us").read_text("utf-8").strip()
            period = (group / "cpu.cfs_period_us").read_text("utf-8").strip()
        return float(limit) / float(period) if limit not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def instruction_sets(cpuinfo: str) -> tuple[str, ...]:
    """Return the instruction sets that the text of /proc/cpuinfo lists, by their usual names.

    >>> instruction_sets("processor : 0\\nflags : fpu sse2 avx2 avx512f avx512_vnni")
    ('avx2', 'avx512', 'avx512_vnni')
    """
    lines = (line.split(":", 1) for line in cpuinfo.splitlines() if ":" in line)
    flags = next((text.split() for name, text in lines if name.strip() in ("flags", "Features")), [])
    return tuple(name for flag, name in INSTRUCTION_SETS.items() if flag in flags)


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def _cpu() -> str:
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
