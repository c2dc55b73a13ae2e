"""What tests of the handlers and of the whole path serve: the tiny artifact with a table, an index, settings."""

import json
import shutil
from pathlib import Path

import numpy as np
import yaml

from elasticlm.latency import LatencyTable
from elasticlm.model import ElasticModel
from elasticlm.retrieval.index import PassageIndex
from elasticlm.teacher import load_teacher
from handlers.archive import TEMPLATE, pack

PASSAGES = {
    "p/1": "what is a glacier",
    "p 2": "the river and the rain",
    "Füße": "a wolf in the snow",
    "p4": "the moon and the tide",
    "p5": "a cave of black stone",
}


def servable(artifact: Path, folder: Path, means_ms: dict, *, passages: str = "teacher") -> Path:
    """Copy an artifact, with a latency table of these means and with this passage encoder."""
    shutil.copytree(artifact, folder)
    config = json.loads((folder / "config.json").read_text())
    if passages == "largest":
        config["passages"] = {"encoder": "largest", "fingerprint": ElasticModel.from_pretrained(folder).fingerprint()}
    (folder / "config.json").write_text(json.dumps(config))
    LatencyTable.from_means(means_ms).write(folder / "latency.csv")
    return folder


def index_of(teacher: Path) -> PassageIndex:
    """The index of PASSAGES by a teacher."""
    encoder = load_teacher(str(teacher))
    vectors = encoder.embed(list(PASSAGES.values()), kind="passage").numpy()
    return PassageIndex.build(
        np.ascontiguousarray(vectors), list(PASSAGES), fingerprint=encoder.fingerprint(), corpus_sha256=None
    )


def archive(name: str, artifact: Path, folder: Path, *, index: PassageIndex | None = None, **handler) -> Path:
    """Pack an archive whose handler has these settings in place of the template's."""
    config = yaml.safe_load(TEMPLATE.read_text())
    config["handler"] |= handler
    target = folder / f"{name}.mar"
    pack(name, artifact, index, yaml.safe_dump(config), target)
    return target
