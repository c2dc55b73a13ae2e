"""finetune --task rerank and its evaluation: pairs, losses, first stages, what is refused."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from elasticlm.errors import InputError
from elasticlm.model.configuration import MaxTokens, Passages
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.retrieval.bm25 import bm25_scores, bm25_top
from elasticlm.retrieval.data_specs import load_retrieval
from elasticlm.retrieval.measures import read_trec_run
from elasticlm.trainer import evaluate, finetune, prune, pruning
from elasticlm.trainer.evaluation.reranking import evaluate as rerank
from elasticlm.trainer.negatives import bm25_negatives, judged_first, run_negatives, with_negatives
from elasticlm.trainer.objectives.base import NONE, draw_negatives
from elasticlm.trainer.objectives.fine_tuning import match_losses
from elasticlm.trainer.training_pairs import TrainingPairs
from elasticlm.trainer.training_texts import TokenizedTexts, joined

SHORT = ["--max-steps", "30", "--batch-size", "8", "--lr", "2e-3", "--negatives", "3", "--dev-examples", "12",
         "--precision", "fp32", "--threads", "1"]  # fmt: skip


@pytest.fixture
def command(tiny_artifact, beir, tmp_path):
    return ["--task", "rerank", "--model", str(tiny_artifact), "--data", f"beir:{beir}", *SHORT,
            "--output", str(tmp_path / "out")]  # fmt: skip


def written(path):
    return json.loads(path.read_text())


def test_it_learns_to_rank_and_is_measured_over_bm25_and_over_a_run(command, beir, tmp_path):
    finetune.main(command)
    log = [line.split(",") for line in (tmp_path / "out/loss.csv").read_text().splitlines()]
    losses = [float(loss) for _, split, level, loss, _ in log[1:] if (split, level) == ("train", "100")]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    model = ElasticModel.from_pretrained(tmp_path / "out")
    assert (model.config.task, model.config.labels, model.config.passages) == ("score", (), Passages())

    measure = ["--model", str(tmp_path / "out"), "--data", f"beir:{beir}", "--split", "train", "--depth", "5"]
    evaluate.main([*measure, "--max-queries", "20", "--output", str(tmp_path / "a.json"),
                   "--run-dir", str(tmp_path / "runs")])  # fmt: skip
    found = written(tmp_path / "a.json")
    assert list(found["metrics"]) == ["first_stage", "100", "50", "10", "teacher"]
    assert list(found["metrics"]["50"]) == ["RR@10", "RR@100", "nDCG@10"]
    assert found["metrics"]["50"]["RR@100"] == found["metrics"]["50"]["RR@10"]  # five passages are reranked
    assert found["metrics"]["first_stage"]["RR@10"] > 0.9  # queries are the first words of their passages
    assert len(found["query_ids"]) == 20
    above = found["above_first_stage"]["50"]["RR@10"]
    means = found["metrics"]
    assert above["difference"][0] == pytest.approx(means["50"]["RR@10"] - means["first_stage"]["RR@10"], abs=1e-5)

    evaluate.main([*measure, "--run", str(tmp_path / "runs/first_stage.run"), "--levels", "50", "--max-queries", "60",
                   "--teacher", str(tmp_path / "out"), "--output", str(tmp_path / "b.json")])  # fmt: skip
    again = written(tmp_path / "b.json")
    asked = [again["query_ids"].index(qid) for qid in found["query_ids"]]
    assert [again["per_query"]["50"]["RR@10"][i] for i in asked] == found["per_query"]["50"]["RR@10"]


def test_at_depth_100_ranks_beyond_10_count_in_rr_100(tiny_artifact, beir):
    model = ElasticModel.from_pretrained(tiny_artifact).with_head("score")
    data = load_retrieval(f"beir:{beir}", "train")
    result, runs = rerank(model, None, data, [50], depth=100)
    assert max(map(len, runs["50"].values())) > 50
    beyond = (result.values["50"]["RR@10"] == 0) & (result.values["50"]["RR@100"] > 0)
    assert beyond.any()
    (qid, *_), ranks = np.array(result.query_ids)[beyond], result.values["50"]["RR@100"][beyond]
    order = sorted(runs["50"][qid], key=runs["50"][qid].get, reverse=True)
    assert 1 / ranks[0] == pytest.approx(1 + min(order.index(pid) for pid in data.qrels[qid]))


def test_a_ranking_teacher_is_matched_and_another_task_is_none(command, tiny_artifact, tmp_path):
    finetune.main([*command, "--max-steps", "2"])
    more = [*command, "--max-steps", "2", "--teacher", str(tmp_path / "out"), "--output", str(tmp_path / "taught")]
    finetune.main(more)
    assert written(tmp_path / "taught/training.json")["steps"] == 2
    with pytest.raises(InputError, match="'embed', not 'score'"):
        finetune.main([*command, "--teacher", str(tiny_artifact), "--output", str(tmp_path / "other")])


def test_a_reranker_fine_tuned_whole_is_pruned_by_its_own_loss(command, tiny_bert, beir, tmp_path):
    data = ["--data", f"beir:{beir}"]
    prune.main(["--teacher", str(tiny_bert), *data, "--levels", "100", "--output", str(tmp_path / "whole")])
    finetune.main([*command, "--model", str(tmp_path / "whole")])
    prune.main(["--teacher", str(tmp_path / "out"), *data, "--levels", "100,50", "--max-examples", "80",
                "--output", str(tmp_path / "pruned")])  # fmt: skip
    teacher, pruned = (ElasticModel.from_pretrained(tmp_path / name) for name in ("out", "pruned"))
    passages = ["the wolf in the snow", "a cave"]
    assert torch.allclose(pruned.score("a wolf", passages), teacher.score("a wolf", passages), atol=1e-5)
    args = prune.parse_args(["--teacher", str(tmp_path / "out"), *data, "--max-examples", "80", "--output", "x"])
    scores = pruning.task_scores(args, teacher)
    assert (scores.heads > 0).all()
    best = np.argsort(-scores.neurons[0])[: pruned.structures[50].neurons[0]]
    whole = teacher.encoder.layers[0].feed_forward
    assert torch.equal(pruned.encoder.layers[0].feed_forward.up.weight, whole.up.weight[best])


def test_what_was_judged_and_refused_comes_before_the_negatives_of_bm25():
    pairs = TrainingPairs(["q", "r"], ["?", "!"], [*"abcdef"], [*"ABCDEF"], [[0], [1]], [[4, 2], []], [None, None])
    found = judged_first(pairs, np.array([[2, 3, 5], [5, 3, 2]]), 3)
    assert found.tolist() == [[4, 2, 3], [5, 3, 2]]
    kept = pairs.with_passages(np.array([0, 1, 2, 4]))
    assert kept.refused == [[3, 2], []]


def test_judged_candidates_are_reranked_where_the_set_has_them(tiny_artifact, beir):
    data = load_retrieval(f"beir:{beir}", "train")
    candidates = {"q1": {"p1": 1, "p2": 0, "p3": 0}, "q2": {"p5": 0}}  # q2 has no answer: left out
    data = replace(data, candidates=candidates)
    model = ElasticModel.from_pretrained(tiny_artifact).with_head("score")
    result, runs = rerank(model, None, data, [50])
    assert result.query_ids == ["q1"]
    assert result.metrics["first_stage"] == {"RR": 1.0, "AP": 1.0}
    scores = model.score(data.queries[1], [data.passages[i] for i in (1, 2, 3)], level=50)
    assert list(runs["50"]["q1"].values()) == pytest.approx(scores.tolist(), abs=1e-5)


@pytest.mark.parametrize("limits", [(64, 64), (4, 16), (64, 9)])
def test_pairs_joined_from_tokens_are_those_of_the_tokenizer(tiny_artifact, limits):
    model = ElasticModel.from_pretrained(tiny_artifact).with_head("score")
    model.config.max_tokens = MaxTokens(*limits, 64)
    queries, passages = ["ice and snow", "wind"], ["the sun and the moon", "rain " * 60]
    parts = [TokenizedTexts.to_join(model, texts, limit)
             for texts, limit in zip((queries, passages), limits, strict=True)]  # fmt: skip
    found = joined(model, *parts, np.array([0, 1]), np.array([0, 1]))
    expected = model.tokenize_pairs(queries, passages)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_the_loss_is_that_of_the_first_of_each_list():
    scores, first = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])
    expected = -np.log(np.exp(2) / np.exp([2, 1, 0]).sum())
    assert match_losses(scores, first).item() == pytest.approx(expected, abs=1e-6)
    assert match_losses(scores, first, scores).item() == pytest.approx(expected / 2, abs=1e-6)


def test_bm25_scores_of_chosen_passages_are_those_of_the_ranking():
    passages = ["rain fell on ice", "the glacier melts", "rain and rain again", "snow on the glacier river"]
    queries = ["glacier river", "rain", "zzz"]
    rows, scores = bm25_top(queries, passages, 2)
    assert rows[0].tolist() == [3, 1]
    for found, expected in zip(bm25_scores(queries, passages, rows.tolist()), scores, strict=True):
        assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_negatives_of_a_run_are_its_best_that_are_not_relevant():
    pairs = TrainingPairs(["q"], ["?"], ["a", "b", "c", "d"], [*"ABCD"], [[1]], [[]], [None])
    run = {"q": {"b": 9.0, "d": 8.0, "x": 7.0, "a": 6.0}}
    assert run_negatives(pairs, run, least=2, depth=4, where="some.run").tolist() == [[3, 0, NONE, NONE]]
    assert run_negatives(pairs, run, least=1, depth=3, where="some.run").tolist() == [[3, NONE, NONE]]  # a is below
    with pytest.raises(InputError, match=r"some.run: query 'q' has 2 .* among its best 9, and 3 are needed"):
        run_negatives(pairs, run, least=3, depth=9, where="some.run")


def test_a_steps_negatives_are_drawn_from_the_run_as_deep_as_it_is(tmp_path):
    passages = [f"p{i}" for i in range(12)]
    pairs = TrainingPairs(["q", "r"], ["?", "!"], passages, passages, [[0], [11]], [[], []], [None, None])
    ranks = {"q": range(9), "r": (11, 3, 2)}
    (tmp_path / "some.run").write_text(
        "".join(f"{qid} Q0 p{row} 1 {-row if qid == 'q' else -i} x\n"
                for qid, rows in ranks.items() for i, row in enumerate(rows))
    )  # fmt: skip
    kept, candidates = with_negatives(pairs, 2, run=str(tmp_path / "some.run"), depth=7)
    assert list(kept.passages) == ["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p11"]
    named = [[kept.passage_ids[row] for row in rows if row != NONE] for rows in candidates.tolist()]
    assert named == [["p1", "p2", "p3", "p4", "p5", "p6"], ["p3", "p2"]]
    drawn = [draw_negatives(candidates, 2, seed=0, step=step) for step in range(60)]
    assert {row for rows in drawn for row in rows[0].tolist()} == {1, 2, 3, 4, 5, 6}
    assert all(sorted(rows[1].tolist()) == [2, 3] for rows in drawn)
    assert all(len(set(rows[0].tolist())) == 2 for rows in drawn)
    assert draw_negatives(candidates, 2, seed=0, step=5).tolist() == drawn[5].tolist()


def test_candidates_without_gaps_are_drawn_as_before():
    candidates = np.arange(12).reshape(3, 4)
    expected = np.random.default_rng([7, 2, 1]).permuted(candidates, axis=1)[:, :2]
    assert draw_negatives(candidates, 2, seed=7, step=1).tolist() == expected.tolist()


def test_a_compressed_run_and_its_depth_reach_the_training(command, tmp_path):
    lines = [f"q{i} Q0 p{(i + shift) % 80} {shift} {-shift} x\n" for i in range(60) for shift in range(1, 11)]
    with gzip.open(tmp_path / "some.run.gz", "wt") as file:
        file.writelines(lines)
    finetune.main([*command, "--max-steps", "2", "--run", str(tmp_path / "some.run.gz"), "--negatives-depth", "8"])
    settings = written(tmp_path / "out/training.json")["settings"]
    assert settings["negatives_depth"] == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--negatives", "0"], "--negatives"),
        (["--negatives", "200"], "only 80 passages"),
        (["--negatives-depth", "2"], "--negatives-depth 2: --negatives needs 3 or more"),
        (["--run", "nowhere.run"], "nowhere.run: no such file"),
    ],
)
def test_bad_input_of_training_is_refused_and_leaves_nothing(command, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        finetune.main([*command, *change])
    assert not list(tmp_path.iterdir())


def test_bad_runs_are_refused_with_their_place(tiny_artifact, beir, tmp_path):
    file = tmp_path / "some.run"
    file.write_text("q1 Q0 p1 1 2.5 tag\nq1 p1 1\n")
    with pytest.raises(InputError, match=r"some.run, line 2: expected: query Q0"):
        read_trec_run(file)
    data = load_retrieval(f"beir:{beir}", "train")
    model = ElasticModel.from_pretrained(tiny_artifact).with_head("score")
    with pytest.raises(InputError, match="passage 'p999'"):
        rerank(model, None, data, [50], run={"q1": {"p999": 1.0}})
    with pytest.raises(InputError, match="ranks nothing"):
        rerank(model, None, data, [50], run={"q9999": {"p1": 1.0}})


def test_a_query_is_no_negative_of_itself():
    pairs = TrainingPairs(
        ["a"], ["ice"], ["a", "b", "c", "d"], ["ice", "ice rain", "ice sun", "snow"], [[1]], [[]], [0]
    )
    assert bm25_negatives(pairs, 1).tolist() == [[2]]
    run = {"a": {"a": 9.0, "b": 8.0, "d": 7.0}}
    assert run_negatives(pairs, run, least=1, depth=3, where="run").tolist() == [[3, NONE, NONE]]
    assert pairs.with_passages(np.array([1, 2, 3])).own == [None]
    assert pairs.with_passages(np.array([0, 1])).own == [0]
