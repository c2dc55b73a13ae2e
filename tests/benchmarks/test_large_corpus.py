"""elasticlm.benchmarks.large_corpus: the generated set, and the memory of indexing and evaluating it."""

import json
import subprocess
import sys

import pytest

from elasticlm.benchmarks import large_corpus
from elasticlm.benchmarks.large_corpus_run import write_set
from elasticlm.retrieval.data_specs import load_retrieval

SMALL, LARGE = 2_000, 200_000
BYTES_PER_PASSAGE = 700  # it takes 570, and 820 where the columns of the file are lists

HOLD = """
import sys
from pathlib import Path
import numpy as np
from elasticlm.retrieval.data_specs import load_corpus, load_retrieval
from elasticlm.retrieval.passage_index import PassageIndex

corpus, data = load_corpus(sys.argv[1]), load_retrieval(sys.argv[1])
random = np.random.default_rng(0)
blocks = (random.random((1000, 32), np.float32) for _ in range(len(corpus.ids) // 1000))
index = PassageIndex.write(sys.argv[2], blocks, corpus.findable.ids, dim=32, fingerprint=None,
                           corpus_sha256=corpus.sha256)
assert not index.missing(data.passage_ids) and not data.has_self_hits
index.search(random.random((10, 32), np.float32), 100)
lines = Path("/proc/self/status").read_text().splitlines()
print(1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")))
"""  # what index and evaluate hold, without the model


def test_the_generated_set_is_the_same_for_a_seed_and_asks_for_its_passages(tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        write_set(tmp_path / name, passages=300, queries=20, seed=seed)
    one, two, other = ((tmp_path / name / "corpus.jsonl").read_bytes() for name in ("one", "two", "other"))
    assert one == two != other
    data = load_retrieval(f"beir:{tmp_path / 'one'}")
    assert (len(data.passages), len(data.queries)) == (300, 20)
    assert all(20 <= len(passage.split()) <= 30 for passage in data.passages)
    passages = dict(zip(data.passage_ids, data.passages, strict=True))
    for qid, query in zip(data.query_ids, data.queries, strict=True):
        assert passages[next(iter(data.qrels[qid]))] == query


@pytest.mark.slow
def test_a_killed_index_continues_and_is_evaluated_like_passages_without_an_index(tmp_path):
    assert large_corpus.main(["--passages", "20000", "--queries", "50", "--output", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert 0 < summary["finished_before_kill"] < summary["blocks"] == 5
    assert (summary["encoded_again"], summary["same_hits"]) == (0, True)
    assert summary["metrics"]["R@100"] > 0.9


@pytest.mark.slow
def test_memory_hardly_grows_with_the_corpus(tmp_path):
    peaks = {}
    for passages in (SMALL, LARGE):
        folder = tmp_path / str(passages)
        write_set(folder, passages, queries=50, seed=0)
        command = [sys.executable, "-c", HOLD, f"beir:{folder}", str(tmp_path / f"{passages}.index")]
        peaks[passages] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    growth = (peaks[LARGE] - peaks[SMALL]) / (LARGE - SMALL)
    assert growth < BYTES_PER_PASSAGE, f"{growth:.0f} bytes per passage"
