"""One TorchServe for all tests that do not need one of their own: several archives, one request per batch."""

import shutil

import pytest
from archives import archive, corpus_of_passages, index_of, pipeline, servable
from driving import MEANS_MS, QUERIES, SCHEDULE
from teachers import sequence_classifier

from elasticlm.backend.onnx_export import export
from elasticlm.benchmarks.server import TorchServe
from elasticlm.handlers import packing
from elasticlm.handlers.archive import main
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import ElasticStructure
from elasticlm.model.teacher import load_model
from elasticlm.schedule.latency import LatencyTable, Setup

RETRIEVER_MS, RERANKER_MS = {100: 5.0, 50: 3.0, 10: 1.0}, {100: 15.0, 50: 10.0, 10: 1.0}
PAIRS = [(100, 100, 4, 0.7), (100, 50, 4, 0.6), (10, 10, 4, 0.5), (10, None, 4, 0.3), (100, 10, 4, 0.4)]
"""Of 200 ms x .5: 65 ms keep to it alone, 45 with one request behind, 5 with 17, 1 with more."""


def on_onnx(artifact, folder):
    """The artifact, to be served by ONNX Runtime."""
    shutil.copytree(artifact, folder)
    LatencyTable(LatencyTable.read(folder / "latency.csv").cells, Setup(backend="onnx")).write(folder / "latency.csv")
    export(ElasticModel.from_pretrained(folder), folder, "fp32", QUERIES)
    return folder


@pytest.fixture(scope="session")
def hugging_face(tiny_bert, tmp_path_factory):
    """Folders of a random reranker and a classifier of Hugging Face's class, by task."""
    folder = tmp_path_factory.mktemp("theirs")
    labels = {"score": 1, "classify": 3}
    return {task: sequence_classifier(tiny_bert, folder / task, count) for task, count in labels.items()}


def pruned(teacher, scores, folder):
    """The levels 100, 50 and 10 of a teacher, with a latency table."""
    structures, *orders = ElasticStructure.from_scores(*scores, [100, 50, 10])
    load_model(teacher).cut(structures, *orders).save_pretrained(folder)
    LatencyTable.from_means(MEANS_MS).write(folder / "latency.csv")
    return folder


@pytest.fixture(scope="session")
def archives(tiny_artifact, tiny_bert, hugging_face, random_scores, tmp_path_factory):
    """`search`: passages by the teacher, an index; `both`: passages by its own largest level; `strict`: late is 504.

    `score` and `classify` are made of classifiers of Hugging Face's class (see hugging_face).
    """
    folder = tmp_path_factory.mktemp("archives")
    query_side = servable(tiny_artifact, folder / "query-side", MEANS_MS)
    both_sides = servable(tiny_artifact, folder / "both-sides", MEANS_MS, passages="largest")
    headed = {task: pruned(teacher, random_scores, folder / f"{task}-model") for task, teacher in hugging_face.items()}
    return {
        **{task: archive(task, model, folder, **SCHEDULE) for task, model in headed.items()},
        "search": archive("search", query_side, folder, index=index_of(tiny_bert), **SCHEDULE),
        "both": archive("both", both_sides, folder, **SCHEDULE, passages="largest"),
        "strict": archive("strict", query_side, folder, **SCHEDULE | {"late": "reject"}),
        "onnx": archive("onnx", on_onnx(query_side, folder / "onnx-side"), folder, **SCHEDULE, backend="onnx"),
    }


@pytest.fixture(scope="session")
def parts(tiny_artifact, tiny_bert, tmp_path_factory):
    """Folder with two.mar, a two-stage archive, and its parts: retriever, reranker, index."""
    folder = tmp_path_factory.mktemp("parts")
    index, data = index_of(tiny_bert), corpus_of_passages(folder / "corpus")
    options = pipeline(tiny_artifact, index, data, folder, RETRIEVER_MS, RERANKER_MS, PAIRS)
    template = folder / "template" / packing.TEMPLATE.name
    template.parent.mkdir()
    template.write_text(packing.TEMPLATE.read_text().replace("correct_table: true", "correct_table: false"))
    with pytest.MonkeyPatch.context() as patch:  # the tiny model is faster than the table says, on an idle machine
        patch.setattr(packing, "TEMPLATE", template)
        main([*options, "--name", "two", "--output", str(folder), "--policy", "slack:t=200,alpha=0.5"])
    return folder


@pytest.fixture(scope="session")
def model(tiny_artifact):
    return ElasticModel.from_pretrained(tiny_artifact)


@pytest.fixture(scope="session")
def server(archives, parts, tmp_path_factory):
    """One request a batch, one worker. A broken `elasticlm` on PYTHONPATH must not reach the archive's own."""
    foreign = tmp_path_factory.mktemp("foreign")
    for package in ("elasticlm", "handlers"):
        (foreign / package).mkdir()
        (foreign / package / "__init__.py").write_text("raise ImportError('the foreign package was imported')")
    with TorchServe(
        {name: archives[name] for name in ("search", "strict", "onnx", "score", "classify")}
        | {"two": parts / "two.mar"},
        env={"PYTHONPATH": str(foreign)},
    ) as running:
        yield running
