import json
import shutil

import faiss
import ir_measures
import numpy as np
import pytest
import safetensors.torch
import torch
from sets import PASSAGES, QUERIES, write_beir
from teachers import sentence_teacher

from elasticlm.errors import InputError
from elasticlm.model.configuration import Passages
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.teacher import load_model
from elasticlm.retrieval.data_specs import load_retrieval
from elasticlm.trainer import evaluate, index
from elasticlm.trainer.evaluation import retrieving

MEASURES = ["RR@10", "RR@100", "nDCG@10", "R@5", "R@20", "R@100"]


@pytest.fixture
def command(tiny_artifact, tiny_beir, tiny_bert, tmp_path):
    """An evaluation of the tiny artifact; tests append to it."""
    return ["--model", str(tiny_artifact), "--data", f"beir:{tiny_beir}", "--teacher", str(tiny_bert),
            "--output", str(tmp_path / "result.json")]  # fmt: skip


@pytest.fixture
def evaluated(command, tmp_path, capsys):
    """Run an evaluation with more options, return what it wrote."""

    def run(*more):
        evaluate.main([*command, *map(str, more)])
        return json.loads((tmp_path / "result.json").read_text()), capsys.readouterr().out

    return run


def test_the_file_holds_every_level_beside_the_teacher(evaluated, tiny_beir, tiny_artifact):
    result, out = evaluated("--split", "train")
    data = load_retrieval(f"beir:{tiny_beir}", "train")
    assert result["format_version"] == 1
    assert (result["data"], result["split"]) == (f"beir:{tiny_beir}", "train")
    assert result["split_sha256"] == data.split_sha256
    assert result["query_ids"] == data.query_ids
    assert list(result["metrics"]) == list(result["per_query"]) == ["teacher", "100", "50", "10"]
    assert list(result["retention"]) == ["100", "50", "10"]
    assert result["passages"]["encoder"] == "teacher"
    for row, measures in result["metrics"].items():
        assert list(measures) == MEASURES
        for measure, value in measures.items():
            assert value == pytest.approx(np.mean(result["per_query"][row][measure]), abs=1e-5)
    for level, measures in result["retention"].items():
        for measure, (value, low, high) in measures.items():
            expected = result["metrics"][level][measure] / result["metrics"]["teacher"][measure]
            assert value == pytest.approx(expected, abs=1e-4)
            assert low - 1e-6 <= value <= high + 1e-6
    assert json.loads(out.splitlines()[-1])["metrics"] == result["metrics"]
    assert [line.split()[0] for line in out.splitlines()[:-1]] == ["level", "teacher", "100", "50", "10"]


def test_the_teachers_figures_are_those_of_exhaustive_search(evaluated, tiny_bert, tiny_beir):
    result, _ = evaluated()
    teacher, data = load_model(tiny_bert), load_retrieval(f"beir:{tiny_beir}", "test")
    scores = teacher.embed(data.queries).numpy() @ teacher.embed(data.passages, kind="passage").numpy().T
    run = {qid: dict(zip(data.passage_ids, row.tolist(), strict=True)) for qid, row in
           zip(data.query_ids, scores, strict=True)}  # fmt: skip
    expected = ir_measures.calc_aggregate([ir_measures.nDCG @ 10, ir_measures.R @ 5], data.qrels, run)
    for measure, value in expected.items():
        assert result["metrics"]["teacher"][str(measure)] == pytest.approx(value, abs=1e-5)


def test_the_whole_level_of_a_pruned_model_retains_everything_and_the_smallest_does_not(evaluated):
    result, _ = evaluated()
    assert result["retention"]["100"]["nDCG@10"] == pytest.approx([1, 1, 1], abs=1e-3)
    assert result["per_query"]["10"]["nDCG@10"] != result["per_query"]["100"]["nDCG@10"]


def test_only_the_levels_asked_for_are_measured(evaluated):
    result, _ = evaluated("--levels", "10")
    assert list(result["metrics"]) == ["teacher", "10"]


def test_a_teacher_alone_is_one_row(tiny_bert, tiny_beir, tmp_path):
    evaluate.main(["--model", str(tiny_bert), "--data", f"beir:{tiny_beir}", "--output", str(tmp_path / "t.json")])
    result = json.loads((tmp_path / "t.json").read_text())
    assert list(result["metrics"]) == ["teacher"]
    assert result["retention"] == {}


def test_an_index_gives_the_same_figures(evaluated, command, tiny_bert, tiny_beir, tmp_path, monkeypatch):
    without, _ = evaluated()
    index.main(["--model", str(tiny_bert), "--data", f"beir:{tiny_beir}", "--output", str(tmp_path / "index")])
    monkeypatch.setattr(retrieving, "encode_passages", lambda *_: pytest.fail("passages were encoded"))
    with_index, _ = evaluated("--index", tmp_path / "index", "--overwrite")
    assert with_index["per_query"] == without["per_query"]


def test_an_index_made_elsewhere_is_checked_on_a_sample(evaluated, tiny_bert, tiny_beir, tmp_path):
    data = load_retrieval(f"beir:{tiny_beir}", "test")
    vectors = load_model(tiny_bert).embed(data.passages, kind="passage").numpy()
    (tmp_path / "ids.txt").write_text("\n".join(data.passage_ids))
    for name, rows in (("good", vectors), ("bad", vectors[::-1].copy())):
        made = faiss.IndexFlatIP(32)
        made.add(rows)
        faiss.write_index(made, str(tmp_path / f"{name}.faiss"))
    without, _ = evaluated()
    result, _ = evaluated("--index", tmp_path / "good.faiss", "--ids", tmp_path / "ids.txt", "--overwrite")
    assert result["metrics"] == without["metrics"]
    with pytest.raises(InputError, match="not made by this teacher"):
        evaluated("--index", tmp_path / "bad.faiss", "--ids", tmp_path / "ids.txt", "--overwrite")


def test_where_the_artifact_encodes_its_own_passages_both_sides_have_their_own(
    tiny_artifact, tiny_bert, tiny_beir, tmp_path
):
    folder = tmp_path / "retriever"
    model = ElasticModel.from_pretrained(tiny_artifact)
    for parameter in model.parameters():
        parameter.data += 0.05 * parameter.data.std().nan_to_num() * parameter.data.sign()
    model.config.passages = Passages("largest", model.fingerprint())
    model.save_pretrained(folder)
    evaluate.main(["--model", str(folder), "--data", f"beir:{tiny_beir}", "--teacher", str(tiny_bert),
                   "--output", str(tmp_path / "r.json")])  # fmt: skip
    result = json.loads((tmp_path / "r.json").read_text())
    data = load_retrieval(f"beir:{tiny_beir}", "test")
    for row, encoder in (("teacher", load_model(tiny_bert)), ("100", model)):
        scores = encoder.embed(data.queries).numpy() @ encoder.embed(data.passages, kind="passage").numpy().T
        ranks = [(-row).argsort().tolist().index(data.passage_ids.index(next(iter(data.qrels[qid]))))
                 for qid, row in zip(data.query_ids, scores, strict=True)]  # fmt: skip
        expected = [1 / (rank + 1) if rank < 10 else 0 for rank in ranks]
        np.testing.assert_allclose(result["per_query"][row]["RR@10"], expected, atol=1e-5)
    assert result["passages"] == {"encoder": "largest", "fingerprint": model.fingerprint(), "index": None}


def test_candidates_are_reranked(tiny_artifact, tiny_bert, tmp_path):
    folder = write_beir(tmp_path / "set", candidates=True)
    evaluate.main(["--model", str(tiny_artifact), "--data", f"beir:{folder}", "--teacher", str(tiny_bert),
                   "--output", str(tmp_path / "r.json")])  # fmt: skip
    result = json.loads((tmp_path / "r.json").read_text())
    teacher = load_model(tiny_bert)
    texts = {pid: f"{title} {text}".strip() for pid, title, text in PASSAGES}
    candidates = {"q1": (["p1", "p2", "p4"], "p2"), "q2": (["p5", "p4"], "p5"), "q3": (["p6"], "p6")}
    for qid, (pids, right) in candidates.items():
        scores = teacher.embed([texts[pid] for pid in pids], kind="passage") @ teacher.embed([QUERIES[qid]])[0]
        rank = 1 + int((scores > scores[pids.index(right)]).sum())
        place = result["query_ids"].index(qid)
        assert result["per_query"]["teacher"]["RR"][place] == pytest.approx(1 / rank, abs=1e-6)
    assert result["per_query"]["teacher"]["AP"][3:] == [None, None]  # no candidates: does not apply
    assert result["metrics"]["teacher"]["RR"] == pytest.approx(
        np.mean(result["per_query"]["teacher"]["RR"][:3]), abs=1e-5
    )


def test_runs_are_written_for_other_tools(evaluated, tmp_path):
    result, _ = evaluated("--run-dir", tmp_path / "runs", "--levels", "50")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["50.run", "teacher.run"]
    lines = [line.split() for line in (tmp_path / "runs" / "50.run").read_text().splitlines()]
    assert len(lines) == 20 * 60  # every query, all passages (fewer than 100)
    assert lines[0][0] == result["query_ids"][0]
    assert [line[3] for line in lines[:3]] == ["1", "2", "3"]


@pytest.mark.parametrize(("more", "found"), [([], set()), (["--keep-self-hits"], {"q1"})])
def test_queries_that_stand_in_the_corpus_do_not_find_themselves(tiny_bert, tmp_path, more, found):
    folder = write_beir(tmp_path / "set")
    with open(folder / "corpus.jsonl", "a") as file:
        file.write(json.dumps({"_id": "q1", "text": QUERIES["q1"]}) + "\n")
    evaluate.main(["--model", str(tiny_bert), "--data", f"beir:{folder}", "--output", str(tmp_path / "t.json"),
                   "--run-dir", str(tmp_path / "runs"), *more])  # fmt: skip
    lines = [line.split() for line in (tmp_path / "runs/teacher.run").read_text().splitlines()]
    assert {line[0] for line in lines if line[2] == "q1" and line[0] == "q1"} == found
    assert {line[0] for line in lines if line[2] == "q1"} - {"q1"} == {"q2", "q3", "q4", "q5"}


def test_save_keeps_the_result_in_the_artifact_beside_other_splits(command, tiny_artifact, tmp_path):
    folder = shutil.copytree(tiny_artifact, tmp_path / "artifact")
    command[1] = str(folder)
    evaluate.main([*command, "--save"])
    evaluate.main([*command, "--save", "--split", "dev", "--overwrite"])
    quality = json.loads((folder / "quality.json").read_text())
    assert list(quality) == [f"{command[3]}#test", f"{command[3]}#dev"]
    assert quality[f"{command[3]}#test"]["retention"]["50"]["RR@10"][0] > 0
    assert quality[f"{command[3]}#dev"]["queries"] == 20


def test_the_same_seed_gives_the_same_intervals(evaluated):
    first, second = evaluated()[0], evaluated("--overwrite")[0]
    assert first["retention"] == second["retention"]
    assert evaluated("--overwrite", "--seed", 1)[0]["retention"] != first["retention"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--levels", "30"], "level 30 is not among"),
        (["--levels", "0"], "above 0 and at most 100"),
        (["--split", "tset"], "no split 'tset'"),
        (["--index", "nowhere"], "no such file"),
        (["--ids", __file__], "give --index"),
        (["--batch-size", "0"], "1 or more"),
    ],
)
def test_bad_options_are_refused_before_any_work(command, tmp_path, more, says, monkeypatch):
    monkeypatch.setattr(ElasticModel, "embed", lambda *_, **__: pytest.fail("texts were encoded"))
    with pytest.raises(InputError, match=says):
        evaluate.main([*command, *more])
    assert not (tmp_path / "result.json").exists()


def test_an_index_of_another_model_or_corpus_is_refused(command, tiny_artifact, tiny_beir, tmp_path):
    folder = write_beir(tmp_path / "set")
    index.main(["--model", command[5], "--data", f"beir:{folder}", "--output", str(tmp_path / "few")])
    with pytest.raises(InputError, match=r"of the 60 passages of .* are not in it"):
        evaluate.main([*command, "--index", str(tmp_path / "few")])
    model = ElasticModel.from_pretrained(tiny_artifact)
    model.config.passages = Passages("largest", model.fingerprint())
    model.save_pretrained(tmp_path / "other")
    index.main(["--model", str(tmp_path / "other"), "--data", command[3], "--output", str(tmp_path / "index")])
    with pytest.raises(InputError, match="encoded by another model"):
        evaluate.main([*command, "--index", str(tmp_path / "index")])


def test_an_existing_output_needs_overwrite(evaluated):
    evaluated()
    with pytest.raises(InputError, match="exists already"):
        evaluated()


def test_vectors_of_dense_modules_are_evaluated_without_an_index(tiny_bert, tiny_beir, tmp_path):
    """Their length is that of the last module, not of the hidden states."""
    sizes = {"in_features": 32, "out_features": 48, "bias": False,
             "activation_function": "torch.nn.modules.linear.Identity"}  # fmt: skip
    modules = [("", "Transformer", None), ("1_Pooling", "Pooling", {"pooling_mode_mean_tokens": True})]
    teacher = sentence_teacher(tiny_bert, tmp_path / "dense", [*modules, ("2_Dense", "Dense", sizes)])
    weight = torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
    safetensors.torch.save_file({"linear.weight": weight}, teacher / "2_Dense/model.safetensors")
    evaluate.main(["--model", str(teacher), "--data", f"beir:{tiny_beir}", "--output", str(tmp_path / "test.json")])
    assert json.loads((tmp_path / "test.json").read_text())["metrics"]["teacher"]["R@100"] == 1.0
