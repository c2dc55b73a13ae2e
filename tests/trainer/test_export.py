import shutil

import pytest

from elasticlm import ElasticModel, InputError, LatencyTable
from elasticlm.teacher import passage_encoder
from trainer.export import main

TEXTS = ["how does ice form", "the river and the rain"]


@pytest.fixture
def artifact(tiny_artifact, tmp_path):
    """The tiny artifact with a latency table."""
    shutil.copytree(tiny_artifact, tmp_path / "model")
    LatencyTable.from_means({100: 3.0, 50: 2.0, 10: 1.0}).write(tmp_path / "model/latency.csv")
    return tmp_path / "model"


def test_an_exported_level_is_the_level_alone(artifact, tmp_path):
    main(["--model", str(artifact), "--level", "10", "--output", str(tmp_path / "ten")])
    whole, alone = ElasticModel.from_pretrained(artifact), ElasticModel.from_pretrained(tmp_path / "ten")
    assert alone.levels == (10,)
    assert (alone.embed(TEXTS) - whole.embed(TEXTS, level=10)).abs().max() < 1e-6
    assert sum(p.numel() for p in alone.parameters()) < sum(p.numel() for p in whole.parameters())
    assert LatencyTable.read(tmp_path / "ten/latency.csv").levels == (10,)
    assert passage_encoder(alone).fingerprint() == whole.config.passages["fingerprint"]


def test_passages_of_an_exported_level_stay_with_the_largest_that_encoded_them(artifact, tmp_path):
    model = ElasticModel.from_pretrained(artifact)
    model.config.passages = {"encoder": "largest", "fingerprint": model.fingerprint()}
    model.save_pretrained(artifact, overwrite=True)
    main(["--model", str(artifact), "--level", "50", "--output", str(tmp_path / "fifty")])
    alone = ElasticModel.from_pretrained(tmp_path / "fifty")
    assert alone.config.passages["encoder"] == "teacher"
    assert passage_encoder(alone).fingerprint() == model.fingerprint()


def test_a_level_that_is_not_there_is_refused_and_nothing_written(artifact, tmp_path):
    with pytest.raises(InputError, match="level 30 is not among"):
        main(["--model", str(artifact), "--level", "30", "--output", str(tmp_path / "thirty")])
    assert not (tmp_path / "thirty").exists()
