"""The paper's sets end to end: DPR's questions and passages, and MS MARCO's documents, in tiny files."""

import json

import numpy as np
import pytest
from sets import PASSAGES, write_dpr, write_jsonl, write_msmarco_docs

from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.retrieval.answers import has_answer
from elasticlm.retrieval.columns import ArrowColumn
from elasticlm.retrieval.data_specs import load_retrieval
from elasticlm.trainer import compare, evaluate, finetune, index
from elasticlm.trainer.evaluation.reranking import evaluate as rerank
from elasticlm.trainer.mixture import Exclusion
from elasticlm.trainer.training_pairs import load_pairs

SHORT = ["--max-steps", "2", "--batch-size", "8", "--dev-examples", "2", "--precision", "fp32", "--threads", "1"]
SUCCESS = ("Success@5", "Success@20", "Success@100")


@pytest.fixture
def questions(tmp_path):
    return write_dpr(tmp_path / "nq")


@pytest.fixture
def docs(tmp_path):
    return write_msmarco_docs(tmp_path / "docs")


def written(path):
    return json.loads(path.read_text())


def test_answers_are_measured_like_any_other_measure(tiny_artifact, tiny_bert, questions, tmp_path, capsys):
    measure = ["--model", str(tiny_artifact), "--teacher", str(tiny_bert), "--data", f"dpr:{questions}"]
    evaluate.main([*measure, "--output", str(tmp_path / "a.json"), "--run-dir", str(tmp_path / "runs")])
    assert "retention of Success@20" in capsys.readouterr().out
    found = written(tmp_path / "a.json")
    assert list(found["metrics"]) == ["teacher", "100", "50", "10"]
    texts = {pid: text for pid, _, text in PASSAGES}
    answers = {"0": ["the Moon", "moon"], "1": ["wolf"], "2": ["nowhere at all"]}
    for level in ("teacher", "50"):
        assert list(found["per_query"][level]) == list(SUCCESS)  # no question is judged
        lines = [line.split() for line in (tmp_path / f"runs/{level}.run").read_text().splitlines()]
        best = {qid: [pid for q, _, pid, *_ in lines if q == qid][:5] for qid in answers}
        expected = [float(any(has_answer(answers[qid], texts[pid]) for pid in best[qid])) for qid in answers]
        assert found["per_query"][level]["Success@5"] == expected
        assert found["per_query"][level]["Success@100"] == [1.0, 1.0, 0.0]  # all ten passages
    assert len(found["retention"]["50"]["Success@20"]) == 3

    index.main(["--model", str(tiny_artifact), "--teacher", str(tiny_bert), "--data", f"dpr:{questions}",
                "--output", str(tmp_path / "index")])  # fmt: skip
    evaluate.main([*measure, "--index", str(tmp_path / "index"), "--output", str(tmp_path / "b.json")])
    assert written(tmp_path / "b.json")["per_query"] == found["per_query"]
    capsys.readouterr()
    compare.main([str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert "Success@20" in capsys.readouterr().out.split("{")[0]


def test_judged_questions_keep_the_other_measures(tiny_artifact, tiny_bert, tmp_path):
    """Tevatron's rows, of which one names no passage, over passages of another set."""
    passages = [{"docid": pid, "title": title, "text": text} for pid, title, text in PASSAGES]
    for name in ("questions", "corpus"):
        (tmp_path / name).mkdir()
    write_jsonl(tmp_path / "corpus/train.jsonl", passages)
    rows = [
        {"query_id": "0", "query": "what pulls the water", "answers": ["moon"], "positive_passages": [passages[4]],
         "negative_passages": [passages[0]]},
        {"query_id": "1", "query": "who lives there", "answers": ["wolf"], "positive_passages": [],
         "negative_passages": [passages[1]]},
    ]  # fmt: skip
    write_jsonl(tmp_path / "questions/test.jsonl", rows)
    evaluate.main(["--model", str(tiny_artifact), "--teacher", str(tiny_bert), "--data", f"hf:{tmp_path}/questions",
                   "--corpus", f"hf:{tmp_path}/corpus", "--levels", "50", "--output", str(tmp_path / "a.json")]
                  )  # fmt: skip
    found = written(tmp_path / "a.json")
    assert found["passages"]["corpus"] == f"hf:{tmp_path}/corpus"
    values = found["per_query"]["50"]
    assert set(values) == {"RR@10", "RR@100", "nDCG@10", "R@5", "R@20", "R@100", *SUCCESS}
    assert values["R@20"] == [1.0, None]  # the second question is not judged
    assert values["Success@20"] == [1.0, 1.0]


def test_a_retriever_is_trained_on_dprs_file(tiny_artifact, questions, tmp_path):
    file = questions / "biencoder-nq-train.json"
    file.write_text(json.dumps(json.loads(file.read_text()) * 10))
    pairs = load_pairs([f"dpr:{questions}"], "train", Exclusion([]))
    assert pairs.passage_ids == ["p10", "p8", "p7", "p3", "p1"]  # those that the file names, of ten
    finetune.main(["--task", "retrieve", "--model", str(tiny_artifact), "--data", f"dpr:{questions}", *SHORT,
                   "--output", str(tmp_path / "out")])  # fmt: skip
    assert written(tmp_path / "out/training.json")["steps"] == 2


def test_documents_are_reranked_behind_a_run(tiny_artifact, docs, tmp_path, capsys):
    command = ["--task", "rerank", "--model", str(tiny_artifact), "--data", f"msmarco-docs:{docs}", *SHORT,
               "--negatives", "3", "--run", str(docs / "msmarco-doctrain-top100.gz")]  # fmt: skip
    finetune.main([*command, "--negatives-depth", "5", "--output", str(tmp_path / "out")])
    drawn = "rerank: 18 queries, 10 passages among"  # two steps and the dev loss; p6 to p10 are positives only
    assert drawn in capsys.readouterr().err
    evaluate.main(["--model", str(tmp_path / "out"), "--data", f"msmarco-docs:{docs}", "--split", "dev", "--depth", "4",
                   "--run", str(docs / "msmarco-docdev-top100.gz"), "--output", str(tmp_path / "a.json")])  # fmt: skip
    found = written(tmp_path / "a.json")
    assert list(found["metrics"]["50"]) == ["RR@10", "RR@100", "nDCG@10"]
    assert found["per_query"]["first_stage"]["RR@100"] == [1.0, 0.0, 0.0, 0.0, 0.0]  # p1 comes first, p5 fifth


def test_texts_of_documents_that_no_list_names_are_not_read(tiny_artifact, docs, monkeypatch):
    read = []
    one, part = ArrowColumn.one, ArrowColumn.part
    data = load_retrieval(f"msmarco-docs:{docs}", "dev")
    pairs = load_pairs([f"msmarco-docs:{docs}"], "train", Exclusion([]))
    kept = pairs.with_passages(np.array([0, 9]))
    monkeypatch.setattr(ArrowColumn, "one", lambda self, row: read.append(one(self, row)) or read[-1])
    monkeypatch.setattr(ArrowColumn, "part", lambda self, *rows: read.extend(part(self, *rows)) or part(self, *rows))
    assert list(kept.passages) == [f"{title} {text}" for _, title, text in (PASSAGES[0], PASSAGES[9])]
    model = ElasticModel.from_pretrained(tiny_artifact).with_head("score")
    rerank(model, None, data, [50], run={"q1": {"p1": 2.0, "p2": 1.0}})
    texts = {text for _, _, text in PASSAGES}
    assert texts.intersection(read) == {PASSAGES[row][2] for row in (0, 1, 9)}


def test_rerankers_need_judgements(tiny_artifact, questions, tmp_path):
    ElasticModel.from_pretrained(tiny_artifact).with_head("score").save_pretrained(tmp_path / "reranker")
    with pytest.raises(InputError, match="has answers and no judgements, which rerankers need"):
        evaluate.main(["--model", str(tmp_path / "reranker"), "--data", f"dpr:{questions}",
                       "--output", str(tmp_path / "a.json")])  # fmt: skip
