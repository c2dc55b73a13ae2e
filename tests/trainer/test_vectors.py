"""Stored vectors: computed once, read by row, the same whoever computed them."""

import numpy as np
import pytest
from random_texts import make_texts

from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.teacher import load_model
from elasticlm.trainer import stored_vectors as vectors
from elasticlm.trainer.stored_vectors import stored_vectors
from elasticlm.trainer.training_texts import TokenizedTexts

TEXTS = make_texts(50, seed=8, shortest=2, longest=30)


@pytest.fixture
def make(tiny_bert, processes, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "BLOCK", 16)
    model = load_model(str(tiny_bert))

    def stored(texts=TEXTS, model=model):
        return stored_vectors(
            model, TokenizedTexts.of(model, texts, "query"), processes, desc="", folder=tmp_path / "v"
        )

    stored.model = model
    return stored


def test_rows_are_the_models_vectors_in_any_order(make):
    stored, expected = make(), make.model.embed(TEXTS)
    rows = np.array([49, 3, 17, 3, 31])
    assert len(stored) == 50
    assert (stored[rows] - expected[rows]).abs().max() < 1e-5
    assert (stored.all() - expected).abs().max() < 1e-5


def test_what_is_on_disk_is_not_computed_again(make, monkeypatch, tmp_path):
    first = make().all()
    encode, encoded = vectors.encode, []
    monkeypatch.setattr(vectors, "encode", lambda *args, **kw: encoded.append(len(args[1])) or encode(*args, **kw))
    assert make().all().equal(first)
    assert not encoded
    make([*TEXTS[:32], "another text"])
    assert encoded == [1]  # blocks of the same texts are shared, whatever comes after them
    sorted((tmp_path / "v").glob("*.npy"))[0].unlink()
    assert make().all().equal(first)


def test_a_file_that_is_cut_off_is_computed_again(make, tmp_path):
    first = make().all()
    file, other = sorted((tmp_path / "v").glob("*.npy"))[:2]
    file.write_bytes(file.read_bytes()[:-8])
    other.write_bytes(b"")
    assert make().all().equal(first)


def test_another_model_has_vectors_of_its_own(make, tiny_artifact, tmp_path):
    make()
    before = set((tmp_path / "v").iterdir())
    other = ElasticModel.from_pretrained(tiny_artifact)
    make(model=other)
    assert len(set((tmp_path / "v").iterdir()) - before) == 4
