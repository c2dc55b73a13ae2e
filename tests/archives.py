"""What tests of the handlers and of the whole path serve: the tiny artifact with a table, an index, settings."""

import json
import shutil
from pathlib import Path

import numpy as np
import yaml

from elasticlm.latency import LatencyTable
from elasticlm.model import ElasticModel
from elasticlm.pairs import MeasuredPair, write_pairs
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


def corpus_of_passages(folder: Path) -> str:
    """Write PASSAGES as a corpus, last first; return its data spec."""
    folder.mkdir()
    lines = [json.dumps({"_id": pid, "title": "", "text": text}) for pid, text in reversed(PASSAGES.items())]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    return f"beir:{folder}"


def pipeline(
    artifact: Path, index: PassageIndex, data: str, folder: Path, denser_ms: dict, ranker_ms: dict, pairs: list[tuple]
) -> list[str]:
    """Make the parts of a two-stage archive; return the options of handlers.archive that name them.

    Args:
        denser_ms, ranker_ms: service times of a row by level.
        pairs: denser, ranker, depth and quality of each.
    """
    servable(artifact, folder / "denser", denser_ms)
    ElasticModel.from_pretrained(artifact).with_head("score").save_pretrained(folder / "headed")
    servable(folder / "headed", folder / "ranker", ranker_ms)
    index.save(folder / "index")
    measured = [MeasuredPair(denser=denser, ranker=ranker, depth=depth, quality=quality, measure="RR@10")
                for denser, ranker, depth, quality in pairs]  # fmt: skip
    write_pairs(folder / "pairs.json", measured)
    return ["--model", str(folder / "denser"), "--ranker", str(folder / "ranker"), "--index", str(folder / "index"),
            "--pairs", str(folder / "pairs.json"), "--data", data]  # fmt: skip
