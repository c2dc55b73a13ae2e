"""What revision b957249 wrote (format 1) is read and gives the same vectors and scores, see data/format1/facts.json."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from elasticlm.errors import InputError
from elasticlm.model.configuration import Calibration, Fusion, Passages
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import ElasticStructure
from elasticlm.model.teacher import load_model, passage_encoder
from elasticlm.retrieval.passage_index import PassageIndex

OLD = Path(__file__).parents[1] / "data" / "format1"
FACTS = json.loads((OLD / "facts.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def expected():
    with np.load(OLD / "expected.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def artifact():
    return ElasticModel.from_pretrained(OLD / "artifact")


def max_diff(found, expected) -> float:
    """Relative to the largest magnitude, but not to less than 1: machines add up float32 in different orders."""
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def test_an_artifact_gives_the_same_vectors_at_every_level(artifact, expected):
    assert artifact.levels == (100, 50, 10)
    for level in artifact.levels:
        difference = max_diff(artifact.embed(FACTS["texts"], level=level), expected[f"query-{level}"])
        assert difference < 1e-5, f"level {level}: max_diff {difference}"


def test_a_teacher_gives_the_same_vectors(expected):
    vectors = load_model(OLD / "teacher").embed(FACTS["texts"], kind="passage")
    assert max_diff(vectors, expected["passage"]) < 1e-5


def test_a_reranker_gives_the_same_scores_and_keeps_what_was_fitted(expected):
    reranker = ElasticModel.from_pretrained(OLD / "ranker")
    for level in reranker.levels:
        scores = reranker.score(FACTS["query"], FACTS["texts"], level=level)
        assert max_diff(scores, expected[f"score-{level}"]) < 1e-5
    assert reranker.config.calibration == Calibration({"100": (1.5, -0.25), "50": (1.0, 0.0)})
    assert reranker.config.fusion == Fusion({"100": 0.5, "10": 2.0})


def test_saved_again_it_is_format_2_and_the_same_model(artifact, expected, tmp_path):
    artifact.save_pretrained(tmp_path / "new")
    fields = json.loads((tmp_path / "new/config.json").read_text("utf-8"))
    assert (fields["format_version"], fields["model_type"], fields["family"]) == (2, "elastic", "bert")
    listed = {"task", "pooling", "normalize", "dense", "prompts", "max_tokens", "levels", "teacher", "head", "passages",
              "calibration", "fusion"}  # fmt: skip
    assert listed <= set(fields)
    assert [fields[name] for name in ("dense", "head", "calibration", "fusion")] == [None] * 4
    copy = ElasticModel.from_pretrained(tmp_path / "new")
    assert max_diff(copy.embed(FACTS["texts"], level=50), expected["query-50"]) < 1e-5


def test_old_fingerprints_are_checked_by_the_old_rule(artifact):
    teacher = load_model(OLD / "teacher")
    assert artifact.has_fingerprint(FACTS["fingerprints"]["artifact"])
    assert teacher.has_fingerprint(FACTS["fingerprints"]["teacher"])
    assert not teacher.has_fingerprint(FACTS["fingerprints"]["artifact"])
    assert passage_encoder(artifact, OLD / "teacher").fingerprint() == teacher.fingerprint()


def test_an_old_index_fits_the_old_artifact_and_its_teacher(artifact):
    teacher = load_model(OLD / "teacher")
    PassageIndex.load(OLD / "index").check(artifact)
    index = PassageIndex.load(OLD / "index")
    index.check(teacher, lambda: teacher)
    assert index.fingerprint == teacher.fingerprint()


def test_an_old_index_fits_a_new_artifact_of_its_teacher(tmp_path):
    teacher = load_model(OLD / "teacher")
    whole = teacher.structures[teacher.structures.largest]
    scores = [np.random.default_rng(0).random((whole.layers, units[0])) for units in (whole.heads, whole.neurons)]
    pruned = teacher.cut(*ElasticStructure.from_scores(*scores, [50, 10]))
    pruned.config.passages = Passages("teacher", teacher.fingerprint())
    pruned.save_pretrained(tmp_path / "new")
    model = ElasticModel.from_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new/config.json").read_text("utf-8"))["format_version"] == 2
    index = PassageIndex.load(OLD / "index")
    assert index.fingerprint == FACTS["fingerprints"]["teacher"], "the index holds a fingerprint of format 1"
    with pytest.raises(InputError, match="encoded by another model"):
        index.check(model)
    index.check(model, lambda: teacher)
    assert index.fingerprint == teacher.fingerprint()
    index.check(model)  # it holds the new fingerprint now


def test_an_old_index_of_another_model_is_refused(artifact, tmp_path):
    shutil.copytree(OLD / "index", tmp_path / "index")
    facts = json.loads((tmp_path / "index/index.json").read_text())
    (tmp_path / "index/index.json").write_text(json.dumps(facts | {"fingerprint": "0" * 64}))
    teacher = load_model(OLD / "teacher")
    with pytest.raises(InputError, match="encoded by another model"):
        PassageIndex.load(tmp_path / "index").check(teacher, lambda: teacher)
