import json

import numpy as np
import pytest
from scipy import stats

from elasticlm.errors import InputError
from elasticlm.trainer.compare import main


@pytest.fixture
def evaluation(tmp_path):
    """Write an evaluation of 200 queries whose level 50 has these values."""

    def write(name, values, *, levels=("50",), reverse=False, **fields):
        query_ids = [f"q{i}" for i in range(200)]
        rows = {level: {"RR@10": list(values), "AP": [None, *values[1:]]} for level in levels}
        if reverse:
            query_ids = query_ids[::-1]
            rows = {level: {m: column[::-1] for m, column in row.items()} for level, row in rows.items()}
        content = {"format_version": 1, "data": "beir:set", "split": "test", "split_sha256": "a" * 64,
                   "query_ids": query_ids, "per_query": rows} | fields  # fmt: skip
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        return str(path)

    return write


@pytest.fixture
def values():
    return np.random.default_rng(0).random(200).round(3).tolist()


def compared(capsys, *files):
    main(list(files))
    out = capsys.readouterr().out.splitlines()
    return json.loads(out[-1])["differences"], out


def test_a_real_difference_is_found_and_its_sign_is_second_minus_first(evaluation, values, capsys):
    better = (np.array(values) + np.random.default_rng(1).normal(0.05, 0.1, 200)).tolist()
    differences, out = compared(capsys, evaluation("a", values), evaluation("b", better))
    found = differences["50"]["RR@10"]
    assert found["difference"][0] == pytest.approx(found["b"] - found["a"])
    assert found["difference"][1] > 0
    assert found["p"] < 0.01
    assert found["t_test_p"] == pytest.approx(stats.ttest_rel(better, values).pvalue)
    assert found["t_test_p"] < 0.01
    assert out[0].split() == ["level", "metric", "A", "B", "B", "-", "A", "p", "t-test", "p"]


def test_queries_are_paired_by_id_whatever_their_order(evaluation, values, capsys):
    differences, _ = compared(capsys, evaluation("a", values), evaluation("b", values, reverse=True))
    assert differences["50"]["RR@10"]["difference"] == [0, 0, 0]
    assert differences["50"]["RR@10"]["p"] == differences["50"]["RR@10"]["t_test_p"] == 1
    assert differences["50"]["AP"]["difference"] == [0, 0, 0]  # null: does not apply to the first query


def test_other_judgements_are_refused(evaluation, values):
    with pytest.raises(InputError, match="different queries or judgements"):
        main([evaluation("a", values), evaluation("b", values, split_sha256="b" * 64)])


def test_no_common_row_is_refused(evaluation, values):
    with pytest.raises(InputError, match="no row in common: 50 and 30"):
        main([evaluation("a", values), evaluation("b", values, levels=("30",))])


def test_only_common_rows_are_compared(evaluation, values, capsys):
    first, second = evaluation("a", values, levels=("50", "10")), evaluation("b", values, levels=("10", "5"))
    assert list(compared(capsys, first, second)[0]) == ["10"]


def test_rows_of_different_names_are_compared_where_they_are_named(evaluation, values, capsys):
    better = (np.array(values) + 0.1).tolist()
    first, second = evaluation("a", values, levels=("30",)), evaluation("b", better, levels=("100", "50"))
    differences, out = compared(capsys, first, second, "--rows", "30", "100")
    assert list(differences) == ["30 vs 100"]
    assert differences["30 vs 100"]["RR@10"]["difference"] == pytest.approx([0.1] * 3)
    assert out[1].startswith("30 vs 100")
    assert list(compared(capsys, second, second, "--rows", "50", "50")[0]) == ["50"]
    with pytest.raises(InputError, match=r"--rows 30 10: B.json has no row '10'; its rows are 100, 50"):
        main([first, second, "--rows", "30", "10"])
    with pytest.raises(InputError, match=r"A.json has no row '100'; its rows are 30"):
        main([first, second, "--rows", "100", "100"])


def test_rows_without_a_common_metric_are_refused(evaluation, values):
    content = {"50": {"nDCG@10": values}}
    with pytest.raises(InputError, match="no metric in common"):
        main([evaluation("a", values), evaluation("b", values, per_query=content)])


@pytest.mark.parametrize(("content", "says"), [(None, "no such file"), ("{", "not JSON"), ("{}", "not an evaluation")])
def test_what_is_no_evaluation_is_refused(evaluation, values, tmp_path, content, says):
    if content is not None:
        (tmp_path / "b.json").write_text(content)
    with pytest.raises(InputError, match=says):
        main([evaluation("a", values), str(tmp_path / "b.json")])
