"""Write, unpack and read archives. This module alone defines their layout:

artifact/            the model; in a two-stage archive, the retriever
index/               the passage index, if the archive answers searches
reranker/            two-stage archives: the reranker's artifact
passages/            two-stage archives: the texts of the index's passages (see elasticlm.retrieval.passage_texts)
pairs.json           two-stage archives: the pairs of levels worth running (see elasticlm.schedule.cascade)
elasticlm/           the code that serves the archive, including elasticlm/handlers
model-config.yaml    the settings
MAR-INF/             TorchServe's manifest
"""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import elasticlm
from elasticlm.backend import PRECISIONS
from elasticlm.backend.graph_hashes import graphs_folder
from elasticlm.backend.onnx_runtime import check_export, has_graphs
from elasticlm.errors import InputError
from elasticlm.model.artifact import read_config, validate
from elasticlm.model.folder import CONFIG_FILE, GRAPHS_FOLDER, LATENCY_FILE, QUALITY_FILE, TEACHER_FILE, WEIGHTS_FILE
from elasticlm.model.structure import Choice
from elasticlm.retrieval.passage_texts import PassageTexts
from elasticlm.schedule.cascade import PAIRS_FILE, MeasuredPair, read_pairs, write_pairs

if TYPE_CHECKING:
    from elasticlm.retrieval.passage_index import PassageIndex

ARTIFACT, INDEX, RERANKER, PASSAGES = "artifact", "index", "reranker", "passages"
OLD_RERANKER = "ranker"
"""The reranker's folder in archives of format 1."""
MANIFEST = "MAR-INF/MANIFEST.json"
SERVED_FILES = (CONFIG_FILE, WEIGHTS_FILE, TEACHER_FILE, LATENCY_FILE, QUALITY_FILE,
                "tokenizer.json", "tokenizer_config.json",
                "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt",
                "*.model")  # fmt: skip
"""What is copied from an artifact besides its graphs; the rest, such as settings of the training, is left behind."""


@dataclass(frozen=True)
class SecondStage:
    """The parts of a two-stage archive other than the retriever and its index.

    Attributes:
        reranker: artifact folder.
        pairs: the pairs of levels worth running, best first.
        passages: texts of the index's passages, in the order of the index.
    """

    reranker: Path
    pairs: Sequence[MeasuredPair]
    passages: Sequence[str]


@dataclass(frozen=True)
class Bundle:
    """An unpacked archive."""

    folder: Path

    @property
    def artifact(self) -> Path:
        """The model's artifact folder."""
        return self.folder / ARTIFACT

    @property
    def index(self) -> Path | None:
        """The index folder; None if the archive does not answer searches."""
        return self.folder / INDEX if (self.folder / INDEX).is_dir() else None

    @property
    def is_two_stage(self) -> bool:
        """Whether hits are reranked by a second model; such an archive answers searches only."""
        return (self.folder / PAIRS_FILE).is_file()

    @property
    def reranker(self) -> Path:
        """The reranker's artifact folder, in a two-stage archive."""
        old = self.folder / OLD_RERANKER
        return old if old.is_dir() else self.folder / RERANKER

    @property
    def passages(self) -> Path:
        """The folder with the texts of the passages, in a two-stage archive."""
        return self.folder / PASSAGES

    def read_pairs(self) -> list[MeasuredPair]:
        """Return the pairs of levels of a two-stage archive, best first."""
        return read_pairs(self.folder / PAIRS_FILE)

    def read_levels(self) -> tuple[Choice, ...]:
        """Return what a policy can choose from: levels, largest first; or pairs of levels, best first."""
        if self.is_two_stage:
            return tuple(pair.levels for pair in self.read_pairs())
        return validate(read_config(self.artifact)).levels

    def read_settings(self) -> tuple[str, Mapping[str, Any]]:
        """Return the archive's name and the contents of its model-config.yaml. Raises InputError."""
        try:
            manifest = read_manifest(self.folder)
            return manifest["modelName"], yaml.safe_load((self.folder / manifest["configFile"]).read_text("utf-8"))
        except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"{self.folder}: not an archive made by `elasticlm archive` ({error})") from None


def read_manifest(archive: Path) -> dict[str, Any]:
    """Return TorchServe's description of an archive, packed or unpacked, by `elasticlm archive` or not.

    It has modelName, modelVersion and, if the archive contains settings, configFile. Raises OSError, KeyError or
    ValueError if the archive has none.
    """
    if archive.is_dir():
        return json.loads((archive / MANIFEST).read_bytes())["model"]
    with zipfile.ZipFile(archive) as packed:
        return json.loads(packed.read(MANIFEST))["model"]


@dataclass(frozen=True)
class ArchiveFacts:
    """What an archive says of itself.

    Attributes:
        name: its name in URLs.
        task: embed, score or classify; search for a two-stage archive.
        levels: what a policy can choose from, largest or best first.
        config: the contents of its model-config.yaml.
    """

    name: str
    task: str
    levels: tuple[Choice, ...]
    config: Mapping[str, Any]


def read_facts(archive: Path) -> ArchiveFacts:
    """Return what an archive, packed or unpacked, says of itself, without unpacking its weights. Raises InputError."""
    if archive.is_dir():
        bundle = Bundle(archive)
        name, config = bundle.read_settings()
        task = "search" if bundle.is_two_stage else read_config(bundle.artifact).task
        return ArchiveFacts(name, task, bundle.read_levels(), config)
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(archive) as packed:
                wanted = [MANIFEST, "model-config.yaml", PAIRS_FILE, f"{ARTIFACT}/{CONFIG_FILE}"]
                for name in {*wanted, read_manifest(archive)["configFile"]} & set(packed.namelist()):
                    packed.extract(name, folder)
        except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{archive}: not an archive made by `elasticlm archive` ({error})") from None
        return read_facts(Path(folder))


def unpack(archive: str | Path, folder: Path) -> Bundle:
    """Unpack a .mar file into a folder. Raises InputError if the file is not an archive of `elasticlm archive`."""
    try:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{archive}: not an archive made by `elasticlm archive` ({error})") from None
    bundle = Bundle(folder)
    try:
        bundle.read_settings()
        read_config(bundle.artifact)
    except InputError as error:
        raise InputError(f"{archive}: not an archive made by `elasticlm archive` ({error})") from None
    return bundle


def stage(
    folder: Path,
    artifact: Path,
    *,
    adapter: Path,
    index: "PassageIndex | None" = None,
    second: SecondStage | None = None,
    left_out: Sequence[str] = (),
) -> None:
    """Write all parts of an archive except its settings and manifest into a new folder.

    Args:
        artifact: the model's artifact folder.
        adapter: folder of the package that adapts the library to the server (elasticlm.handlers).
        left_out: names of folders of graphs that are not copied from artifacts.

    Only the files that are needed to serve are copied. Raises InputError if one of them is a symbolic link, which could
    put any file of this machine into the archive.
    """
    _copy_code(Path(elasticlm.__file__).parent, folder / "elasticlm")
    _copy_code(adapter, folder / "elasticlm" / "handlers")
    _copy_artifact(artifact, folder / ARTIFACT, left_out)
    if index is not None:
        index.save(folder / INDEX)
    if second is not None:
        _copy_artifact(second.reranker, folder / RERANKER, left_out)
        PassageTexts.write(folder / PASSAGES, second.passages)
        write_pairs(folder / PAIRS_FILE, second.pairs)


def _copy_artifact(artifact: Path, target: Path, left_out: Sequence[str]) -> None:
    """Copy the files of an artifact that are needed to serve it, graphs only if they are those of the export."""
    files = [file for pattern in SERVED_FILES for file in sorted(artifact.glob(pattern))]
    for precision in PRECISIONS["onnx"]:
        if not {GRAPHS_FOLDER, precision} & set(left_out) and has_graphs(artifact, precision):
            check_export(artifact, precision)
            files += sorted(graphs_folder(artifact, precision).glob("[!.]*"))
    for file in files:
        parts = [artifact / part for part in (file, *file.parents) if artifact in part.parents]
        if link := next((part for part in parts if part.is_symlink()), None):
            raise InputError(f"{link}: a symbolic link; an archive holds the artifact's own files: put a copy there")
        if file.is_file() and not file.name.startswith("."):
            copy = target / file.relative_to(artifact)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def _copy_code(package: Path, target: Path) -> None:
    """Copy the .py files of a package, without caches and data."""
    for file in package.rglob("*.py"):
        copy = target / file.relative_to(package)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
