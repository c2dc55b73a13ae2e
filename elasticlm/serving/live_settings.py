"""Budget and policy changed while the worker serves: a small YAML file that is read again when it changes.

A file, because it needs no port and no restart, reaches every worker of a model alike, is changed atomically (`mv`),
and can be a mounted ConfigMap or stand under version control. A worker looks at its time stamp once a second.
"""

import logging
import time
from collections.abc import Callable
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


class LiveSettings:
    """The settings as they stand now.

    Args:
        settings: those of the archive; `live_file` names the file, None: nothing changes.
        adopt: called with new settings before they count; raises InputError where they cannot be served.
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
        """Return the settings, read again where the file has changed. What is wrong in it is logged and not taken."""
        if self._file is None or self._clock() < self._look_at:
            return self._now
        self._look_at = self._clock() + LOOK_EVERY_S
        stamp = _stamp(self._file)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                changed = self._read() if stamp else self._packed  # a file that is taken away: as packed
                self._adopt(changed)
            except InputError as error:
                logger.error("%s: %s; the settings before it stay", self._file, error)
            else:
                self._now = changed
                shown = ", ".join(f"{name} {getattr(changed, name)}" for name in CHANGEABLE)
                logger.info("settings now: %s", shown)
        return self._now

    def _read(self) -> Settings:
        try:
            content: Any = yaml.safe_load(self._file.read_text("utf-8")) or {}  # type: ignore[union-attr]
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"cannot be read ({' '.join(str(error).split())})") from None
        if not isinstance(content, dict):
            raise InputError(f"expected some of {', '.join(CHANGEABLE)}")
        for name in content:
            if name not in CHANGEABLE:
                raise InputError(f"{unknown('live setting', str(name), CHANGEABLE)} (others need a new archive)")
        return replace(self._packed, **content)


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size
