"""Change the budget and the policy while a worker is running, by means of a small YAML file.

A file needs no port and no restart, reaches all workers of a model, can be replaced atomically (`mv`), and can be a
mounted ConfigMap or be kept under version control. Each worker checks the file's timestamp once per second.
"""

import logging
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from elasticlm.errors import InputError
from elasticlm.hints import unknown
from elasticlm.serving.settings import Settings

logger = logging.getLogger(__name__)

CHANGEABLE = ("latency_budget_ms", "policy", "alpha", "late")
LOOK_EVERY_S = 1.0
LARGEST = 64 * 1024  # bytes of a live file


class LiveSettings:
    """The current settings: those of the archive, with the values of the live file on top.

    Args:
        settings: the settings of the archive; `live_file` names the file. If it is None, the settings never change.
        adopt: called with new settings before they take effect; raises InputError if they cannot be served.
    """

    def __init__(
        self,
        settings: Settings,
        adopt: Callable[[Settings], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._packed = self._now = settings
        self._file = Path(settings.live_file) if settings.live_file else None
        self._adopt, self._clock = adopt, clock
        self._stamp: tuple[int, int] | None = None
        self._look_at = -float("inf")

    def __call__(self) -> Settings:
        """Return the settings; read the file again if it has changed. Invalid values are logged and ignored."""
        if self._file is None or self._clock() < self._look_at:
            return self._now
        self._look_at = self._clock() + LOOK_EVERY_S
        stamp = _stamp(self._file)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                changed = self._read() if stamp else self._packed  # if the file was removed, use the archive's settings
                self._adopt(changed)
            except InputError as error:
                logger.error("%s: %s; keeping the previous settings", self._file, error)
            else:
                self._now = changed
                shown = ", ".join(f"{name} {getattr(changed, name)}" for name in CHANGEABLE)
                logger.info("settings now: %s", shown)
        return self._now

    def _read(self) -> Settings:
        assert self._file is not None
        try:
            content: Any = yaml.safe_load(_read_regular(self._file)) or {}
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: not UTF-8, no such date
            raise InputError(f"cannot be read ({' '.join(str(error).split())[:200]})") from None
        if not isinstance(content, dict):
            raise InputError(f"expected a mapping with any of {', '.join(CHANGEABLE)}")
        for name in content:
            if name not in CHANGEABLE:
                raise InputError(
                    f"{unknown('live setting', str(name), CHANGEABLE)}; to change others, pack the archive again"
                )
        try:
            changed = replace(self._packed, **content)
        except OverflowError as error:
            raise InputError(str(error)) from None
        _check_effect(content, changed)
        return changed


def _check_effect(content: Mapping[str, Any], settings: Settings) -> None:
    """Raise InputError if a value of the live file has no effect on the settings that result from it."""
    policy = settings.parsed_policy()
    chosen = policy.settings()
    for name, option in (("latency_budget_ms", "t"), ("alpha", "alpha")):
        if name in content and name in chosen and content[name] != chosen[name]:
            raise InputError(
                f"{name} is {content[name]}, but the policy has {option}={chosen[name]:g}; give one of them"
            )
    if "alpha" in content and "alpha" not in chosen:
        raise InputError(f"alpha has no effect with the policy {policy}")
    if settings.late == "reject" and settings.latency_budget_ms is None:
        raise InputError("late: reject has no effect without latency_budget_ms")


def _read_regular(file: Path) -> str:
    """Return the text of a small regular file. Raises OSError for anything else, such as a FIFO, without waiting."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is not a regular file")
        content = opened.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise OSError(f"it is larger than {LARGEST} bytes")
    return content.decode("utf-8")


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
