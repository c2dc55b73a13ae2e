"""elasticlm.benchmarks.retention: its table against the evaluations, its pictures, its refusals."""

import json

import numpy as np
import pandas as pd
import pytest

from elasticlm.benchmarks import retention
from elasticlm.errors import InputError

QUERIES = [f"q{i}" for i in range(40)]


@pytest.fixture
def write(tmp_path):
    def evaluation(name, levels, *, queries=QUERIES):
        """Of a teacher who is always right; a level is right in its share of the queries."""
        right = {
            level: [float(i < share * len(queries)) for i in range(len(queries))] for level, share in levels.items()
        }
        content = {
            "query_ids": queries,
            "metrics": {level: {"RR@10": float(np.mean(values))} for level, values in right.items()},
            "retention": {level: {"RR@10": [float(np.mean(values)), 0.1, 0.9]} for level, values in right.items()},
            "per_query": {level: {"RR@10": values} for level, values in right.items()},
        }
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(content))
        return str(file)

    return evaluation


def test_every_training_is_compared_with_the_first(write, tmp_path, capsys):
    elastic = write("elastic", {"50": 0.9, "10": 0.5})
    alone = f"{write('a', {'50': 0.9})},{write('b', {'10': 0.8})}"
    retention.main([f"elastic={elastic}", f"alone={alone}", "--output", str(tmp_path / "out")])
    table = pd.read_csv(tmp_path / "out/retention.csv")
    assert table.training.tolist() == ["elastic", "elastic", "alone", "alone"]
    assert table.retention.tolist() == [0.9, 0.5, 0.9, 0.8]
    assert table.difference.tolist()[2:] == [0.0, pytest.approx(0.3)]
    assert table.p[3] < 0.01 < table.p[2]
    assert (tmp_path / "out/retention.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == 4


def test_labels_that_are_numbers_are_an_axis(write, tmp_path):
    runs = [f"{minutes}={write(minutes, {'50': share})}" for minutes, share in (("5", 0.5), ("15", 0.7), ("30", 0.8))]
    retention.main([*runs, "--over", "minutes", "--output", str(tmp_path / "out")])
    assert (tmp_path / "out/retention.png").exists()
    with pytest.raises(InputError, match="numbers"):
        retention.main([f"five={write('x', {'50': 0.5})}", "--over", "minutes", "--output", str(tmp_path / "no")])


def test_what_is_no_evaluation_is_refused(write, tmp_path):
    (tmp_path / "broken.json").write_text("{}")
    for wrong, message in [
        ("a.json", "LABEL="),
        ("a=nowhere.json", "nowhere"),
        (f"a={tmp_path}/broken.json", "not an ev"),
    ]:
        with pytest.raises(InputError, match=message):
            retention.main([wrong, "--output", str(tmp_path / "out")])
    other = write("other", {"50": 0.5}, queries=[f"x{i}" for i in range(40)])
    with pytest.raises(InputError, match="other queries"):
        retention.main([f"a={write('a', {'50': 0.5})}", f"b={other}", "--output", str(tmp_path / "out")])
