"""evaluate --matrix: each pair of levels is measured as if alone; the files for people and for elasticlm archive."""

import json

import pytest

from elasticlm.errors import InputError
from elasticlm.model.configuration import Fusion
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.retrieval import measures as metrics
from elasticlm.retrieval.data_specs import load_retrieval
from elasticlm.schedule.cascade import MeasuredPair, read_pairs
from elasticlm.trainer import evaluate, index
from elasticlm.trainer.evaluation import level_pairs as pipeline
from elasticlm.trainer.evaluation.reranking import evaluate as rerank


@pytest.fixture
def reranker(tiny_artifact, tmp_path):
    """Folder with a random reranker whose level 50 is fused with the first stage."""
    model = ElasticModel.from_pretrained(tiny_artifact).with_head("score")
    model.config.fusion = Fusion({"50": 2.0})
    model.save_pretrained(tmp_path / "reranker")
    return tmp_path / "reranker"


@pytest.fixture
def command(reranker, tiny_artifact, tiny_bert, tiny_beir, tmp_path):
    index.main(["--model", str(tiny_bert), "--data", f"beir:{tiny_beir}", "--output", str(tmp_path / "index")])
    return ["--matrix", "--model", str(reranker), "--retriever", str(tiny_artifact), "--teacher", str(tiny_bert),
            "--index", str(tmp_path / "index"), "--data", f"beir:{tiny_beir}", "--depth", "6",
            "--output", str(tmp_path / "matrix.json")]  # fmt: skip


def test_every_pair_is_measured_as_a_rerank_of_that_levels_own_run(command, reranker, tiny_artifact, tmp_path, capsys):
    evaluate.main([*command, "--retriever-levels", "100,10", "--levels", "50,10", "--split", "dev"])
    found = json.loads((tmp_path / "matrix.json").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["pairs"] == str(tmp_path / "pairs.json")
    assert list(found["metrics"]) == ["100", "10", "100+50", "10+50", "100+10", "10+10"]
    assert found["fusion"] == {"50": 2.0, "10": 0.0}

    evaluate.main(["--model", str(tiny_artifact), *command[5:11], "--split", "dev",
                   "--output", str(tmp_path / "retriever.json"), "--run-dir", str(tmp_path / "runs")])  # fmt: skip
    model, data = ElasticModel.from_pretrained(reranker), load_retrieval(command[10], "dev")
    for level in ("100", "10"):
        run = metrics.read_trec_run(tmp_path / f"runs/{level}.run")
        expected, _ = rerank(model, None, data, [50, 10], run=run, depth=6)
        for ours, theirs in ((level, "first_stage"), (f"{level}+50", "50+first_stage"), (f"{level}+10", "10")):
            assert found["per_query"][ours] == expected.to_json()["per_query"][theirs], ours

    pairs = read_pairs(tmp_path / "pairs.json")
    assert [pair.quality for pair in pairs] == sorted((pair.quality for pair in pairs), reverse=True)
    assert {(pair.retriever, pair.reranker) for pair in pairs} == {(d, r) for d in (100, 10) for r in (None, 50, 10)}
    best = pairs[0]
    name = f"{best.retriever}+{best.reranker}" if best.reranker else str(best.retriever)
    assert (best.quality, best.depth, best.measure) == (found["metrics"][name]["RR@10"], 6, "RR@10")
    assert (tmp_path / "matrix.png").stat().st_size > 5_000


def test_the_reranker_scores_each_query_with_each_passage_once_a_level(command, monkeypatch):
    seen = []
    monkeypatch.setattr(pipeline, "rerank", lambda model, level, texts, lists: (
        seen.append((level, len(texts), sum(map(len, lists.values())))) or {q: dict.fromkeys(own, 0.0)
                                                                            for q, own in lists.items()}))  # fmt: skip
    evaluate.main([*command, "--max-queries", "7"])
    assert [level for level, _, _ in seen] == [100, 50, 10]
    assert len(set(seen)) == 3
    assert {texts == pairs and 7 * 6 <= pairs < 3 * 7 * 6 for _, texts, pairs in seen} == {True}


def test_the_table_has_the_retrievers_levels_down_and_the_rerankers_across():
    measured = [(50, None, 0.4), (50, 10, 0.5), (10, None, 0.2), (10, 10, 0.25), (50, 30, 0.6), (10, 30, 0.3)]
    pairs = [MeasuredPair(retriever=d, reranker=r, depth=20, quality=q, measure="RR@10") for d, r, q in measured]
    assert pipeline.table(pairs) == [
        {"RR@10, retriever": "50", "alone": "0.4000", "30": "0.6000", "10": "0.5000"},
        {"RR@10, retriever": "10", "alone": "0.2000", "30": "0.3000", "10": "0.2500"},
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--retriever", ""], "go together"),
        (["--retriever", "RERANKER"], "not retrieval"),
        (["--model", "RETRIEVER"], "is for rerankers"),
        (["--retriever-levels", "30"], "level 30 is not among"),
        (["--output", "pairs.json"], "expected FILE.json"),
        (["--save"], "--save does not go with --matrix"),
        (["--run-dir", "runs"], "--run-dir does not go with --matrix"),
        (["--index", "MORE"], "does not have its passage 'p60'"),
    ],
)
def test_what_does_not_go_together_is_refused_and_leaves_nothing(
    command, reranker, tiny_artifact, tiny_bert, beir, change, says
):
    names = {"RERANKER": str(reranker), "RETRIEVER": str(tiny_artifact), "MORE": str(reranker.parent / "more")}
    index.main(["--model", str(tiny_bert), "--data", f"beir:{beir}", "--output", names["MORE"]])
    before = sorted(reranker.parent.iterdir())
    with pytest.raises(InputError, match=says):
        evaluate.main([*command, "--split", "train", *(names.get(part, part) for part in change)])
    assert sorted(reranker.parent.iterdir()) == before
