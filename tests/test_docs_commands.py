"""The documentation's commands run as they are written, on tiny models and data; each page's in their order."""

import json
import re
import shlex
import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest
from families import tiny_teacher
from qdrant_client import QdrantClient
from random_texts import make_texts

from elasticlm.__main__ import main
from elasticlm.model.families.base import CLASSIFIER
from elasticlm.model.teacher import load_model

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```sh\n(.*?)```", re.S)
SHORT = {
    "prune": "--max-examples 16 --overwrite",
    "finetune": "--max-steps 2 --batch-size 8 --overwrite",
    "profile": "--seconds 0 --min-runs 1 --rows 1 --tokens 16,48",
    "index": "--overwrite",
    "archive": "--overwrite",
    "policies": "--requests 50 --overwrite",
}
"""What the commands get in addition, so that they are done soon."""
ELSEWHERE = ("recipe", "simulate", "demo", "report")
"""Commands that other tests and the demo run."""


def commands_of(page: str) -> list[list[str]]:
    """The words of each command of a page."""
    blocks = "\n".join(BLOCK.findall((ROOT / page).read_text("utf-8"))).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True)[1:] for line in blocks.splitlines() if line.startswith("elasticlm ")]
    return [words for words in lines if words[0] not in ELSEWHERE]


@pytest.fixture
def user(tiny_beir, tmp_path, monkeypatch):
    """A user's folder with data and an index; a function that runs a command there under the user's own names."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_beir, "data")
    tiny_teacher("bert", tmp_path / "encoder", noise=0.05)
    tiny_teacher("bert", tmp_path / "cross-encoder", CLASSIFIER, noise=0.05, num_labels=1)
    corpus = [json.loads(line) for line in (tiny_beir / "corpus.jsonl").read_text().splitlines()]
    vectors = (
        load_model(tmp_path / "encoder").embed([f"{p['title']} {p['text']}" for p in corpus], kind="passage").numpy()
    )
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    faiss.write_index(index, "passages.faiss")
    Path("ids.txt").write_text("".join(f"{p['_id']}\n" for p in corpus))
    Path("arrivals.csv").write_text("t_s\n" + "".join(f"{0.05 * i}\n" for i in range(100)))
    Path("glue").mkdir()
    for split in ("train", "dev"):
        rows = [{"sentence1": text, "sentence2": None, "label": i % 2} for i, text in enumerate(make_texts(40, seed=0))]
        Path(f"glue/{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names = {
        "MODEL": "encoder",
        "intfloat/e5-base-v2": "encoder",
        "cross-encoder/ms-marco-MiniLM-L6-v2": "cross-encoder",
        "beir:FOLDER": "beir:data",
        "beir:DIR": "beir:data",
        "text:queries.txt": "beir:data",
        "glue:FOLDER": "glue:glue",
    }

    def run(words):
        main([*(names.get(word, word) for word in words), *SHORT.get(words[0], "").split()])

    return run


@pytest.mark.slow
def test_your_model(user):
    commands = commands_of("docs/your-model.md")
    assert len(commands) > 10
    for words in commands:
        user(words)
    assert Path("model_store/search.mar").is_file()


@pytest.mark.slow
def test_search_then_rerank(user):
    for role, kind in (("retriever", "encoder"), ("reranker", "cross-encoder")):
        user(["prune", "--teacher", kind, "--data", "beir:data", "--levels", "100,50,10", "--output", role])
        user(["profile", "--model", role, "--backend", "torch"])
    user(["index", "--model", "retriever", "--data", "beir:data", "--output", "index"])
    for words in commands_of("docs/http.md"):
        user(words)
    assert Path("model_store/search.mar").is_file()


@pytest.mark.slow
def test_vector_databases(user, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs/examples")
    import qdrant_search

    client = QdrantClient(":memory:")
    corpus = [json.loads(line) for line in Path("data/corpus.jsonl").read_text().splitlines()]
    qdrant_search.fill(client, "articles", "encoder", {passage["_id"]: passage["text"] for passage in corpus})
    qdrant_search.export(client, "articles", Path("collection"))
    shutil.copy("data/queries.jsonl", "collection")
    commands = commands_of("docs/vector-databases.md")
    assert [words[0] for words in commands] == ["prune", "finetune", "profile", "archive"]
    for words in commands:
        user(words)
    assert Path("model_store/search.mar").is_file()


@pytest.mark.slow
def test_sizing(user):
    user(["prune", "--teacher", "MODEL", "--data", "beir:data", "--levels", "100,50,10", "--output", "out/mini"])
    user(["profile", "--model", "out/mini", "--backend", "torch"])
    user(["evaluate", "--model", "out/mini", "--data", "beir:data", "--output", "out/mini.json", "--save"])
    user(["archive", "--model", "out/mini", "--name", "mini", "--output", "model_store/"])
    (words,) = commands_of("docs/production.md")
    user(words)
    for words in commands_of("docs/kubernetes.md"):
        user(words)
    assert any(Path("out/plan").iterdir())
