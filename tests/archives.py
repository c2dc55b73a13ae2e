"""What tests of the handlers and of the whole path serve: the tiny artifact with a table, an index, settings."""

import json
import shutil
from pathlib import Path

import numpy as np
import yaml

from elasticlm.handlers.packing import TEMPLATE, pack
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.teacher import load_model
from elasticlm.retrieval.passage_index import PassageIndex
from elasticlm.schedule.cascade import MeasuredPair, write_pairs
from elasticlm.schedule.latency import LatencyTable

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


def with_head(artifact: Path, folder: Path, means_ms: dict, task: str, labels: list[str] | None = None) -> Path:
    """Copy an artifact as one of another task, with a random head."""
    ElasticModel.from_pretrained(artifact).with_head(task, labels).save_pretrained(folder)
    LatencyTable.from_means(means_ms).write(folder / "latency.csv")
    return folder


def index_of(teacher: Path) -> PassageIndex:
    """The index of PASSAGES by a teacher."""
    encoder = load_model(str(teacher))
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
    artifact: Path,
    index: PassageIndex,
    data: str,
    folder: Path,
    retriever_ms: dict,
    reranker_ms: dict,
    pairs: list[tuple],
) -> list[str]:
    """Make the parts of a two-stage archive; return the options of elasticlm.handlers.archive that name them.

    Args:
        retriever_ms, reranker_ms: service times of a row by level.
        pairs: retriever, reranker, depth and quality of each.
    """
    servable(artifact, folder / "retriever", retriever_ms)
    ElasticModel.from_pretrained(artifact).with_head("score").save_pretrained(folder / "headed")
    servable(folder / "headed", folder / "reranker", reranker_ms)
    index.save(folder / "index")
    measured = [MeasuredPair(retriever=retriever, reranker=reranker, depth=depth, quality=quality, measure="RR@10")
                for retriever, reranker, depth, quality in pairs]  # fmt: skip
    write_pairs(folder / "pairs.json", measured)
    return ["--model", str(folder / "retriever"), "--reranker", str(folder / "reranker"),
            "--index", str(folder / "index"), "--pairs", str(folder / "pairs.json"), "--data", data]  # fmt: skip
