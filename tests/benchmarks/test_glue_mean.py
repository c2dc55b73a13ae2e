"""glue: several sets of GLUE side by side, and the mean of what levels keep of them."""

import json
import math

import pandas as pd
import pytest

from elasticlm.benchmarks import glue_average, glue_mean
from elasticlm.errors import InputError


def write(folder, name, retention, *, level="50", measure="accuracy", label=None):
    low, high = retention - 0.03, retention + 0.04
    file = folder / f"{label or name}.json"
    file.write_text(json.dumps({
        "data": f"glue:some/where/{name}",
        "metrics": {"teacher": {measure: 0.8}, level: {measure: 0.8 * retention}, "majority": {measure: 0.5}},
        "retention": {level: {measure: [retention, low, high]}},
    }))  # fmt: skip
    return str(file)


def test_the_mean_over_sets_has_an_interval_made_of_theirs(tmp_path, capsys):
    files = [write(tmp_path, "rte", 0.9), write(tmp_path, "stsb", 1.0, measure="Spearman")]
    glue_mean.main([f"elastic={','.join(files)}", "--output", str(tmp_path / "out")])
    (mean,) = json.loads(capsys.readouterr().out.splitlines()[-1])["mean"]
    assert (mean["training"], mean["level"], mean["retention"]) == ("elastic", "50", pytest.approx(0.95))
    assert mean["retention"] - mean["low"] == pytest.approx(0.03 / math.sqrt(2), abs=1e-6)
    assert mean["high"] - mean["retention"] == pytest.approx(0.04 / math.sqrt(2), abs=1e-6)
    table = pd.read_csv(tmp_path / "out/glue.csv")
    assert set(table[table.set == "rte"].level) == {"teacher", "50", "majority"}
    assert (tmp_path / "out/glue.png").stat().st_size > 10_000


def test_a_level_that_one_set_lacks_has_no_mean(tmp_path):
    elastic = ",".join([write(tmp_path, "rte", 0.9), write(tmp_path, "sst2", 0.95)])
    alone = write(tmp_path, "rte", 0.92, label="alone")
    table = pd.concat([glue_average.read(f"elastic={elastic}"), glue_average.read(f"alone={alone}")], ignore_index=True)
    assert glue_average.mean_over_sets(table).training.tolist() == ["elastic"]


def test_what_is_no_evaluation_of_a_classifier_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected LABEL=FILE"):
        glue_average.read("a.json")
    with pytest.raises(InputError, match="No such file"):
        glue_average.read(f"a={tmp_path / 'none.json'}")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(InputError, match="not an evaluation of a classifier"):
        glue_average.read(f"a={tmp_path / 'other.json'}")
