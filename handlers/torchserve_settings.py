"""The settings that only TorchServe needs; the others belong to the serving core (elasticlm.serving.settings)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elasticlm.errors import InputError
from elasticlm.serving.settings import Settings, SettingsGroup, read_section


@dataclass(frozen=True, kw_only=True)
class TorchServeSettings(SettingsGroup):
    """Where the handler finds the queue depth."""

    management_url: str = "http://127.0.0.1:8081"
    """TorchServe's management API, which reports the queue depth; empty: not used."""
    management_key_file: str | None = None
    """The key_file.json that TorchServe writes if token authorization is on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.management_url and not self.management_url.startswith("http://"):
            raise InputError(
                f"handler.management_url is {self.management_url!r}, expected http://HOST:PORT or an empty value"
            )


def read_handler_section(section: Mapping[str, Any] | None) -> tuple[Settings, TorchServeSettings]:
    """Read the section `handler` of model-config.yaml. Raises InputError."""
    return read_section(section, Settings, TorchServeSettings)
