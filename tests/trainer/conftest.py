"""Small training data in the tiny BERT's own words."""

import json

import pytest
from random_texts import make_texts

from elasticlm.trainer.processes import Processes


@pytest.fixture(scope="session")
def beir(tmp_path_factory):
    """Folder with 80 passages and 60 train queries, each the first words of its passage; query 0 has two positives."""
    folder = tmp_path_factory.mktemp("data") / "beir"
    (folder / "qrels").mkdir(parents=True)
    passages = make_texts(80, seed=1, shortest=8, longest=20)
    queries = [" ".join(passage.split()[:5]) for passage in passages[:60]]
    lines = [json.dumps({"_id": f"p{i}", "title": "", "text": text}) for i, text in enumerate(passages)]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    (folder / "queries.jsonl").write_text(
        "\n".join(json.dumps({"_id": f"q{i}", "text": text}) for i, text in enumerate(queries))
    )
    judgements = [f"q{i}\tp{i}\t1" for i in range(60)] + ["q0\tp70\t2"]
    (folder / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(judgements) + "\n")
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """A file with 120 paragraphs of two sentences."""
    file = tmp_path_factory.mktemp("data") / "paragraphs.txt"
    halves = make_texts(240, seed=2, shortest=5)
    pairs = zip(halves[::2], halves[1::2], strict=True)
    file.write_text("\n".join(f"{a.capitalize()}. {b.capitalize()}." for a, b in pairs))
    return file


@pytest.fixture
def processes():
    return Processes("fp32")
