import math

import ir_measures
import numpy as np
import pytest

from elasticlm.errors import InputError
from elasticlm.retrieval import measures as metrics

QRELS = {"q1": {"a": 2, "b": 1, "c": 0}, "q2": {"d": 1}, "q3": {"e": 1}}
RUN = {"q1": {"x": 9.0, "b": 8.0, "a": 7.0, "c": 6.0}, "q2": {"d": 1.0, "x": 0.5}}


def test_values_stand_in_the_order_of_the_queries():
    values = metrics.per_query(QRELS, RUN)
    assert list(values) == ["RR@10", "RR@100", "nDCG@10", "R@5", "R@20", "R@100"]
    np.testing.assert_allclose(values["RR@10"], [0.5, 1, 0])
    np.testing.assert_allclose(values["R@5"], [1, 1, 0])
    ideal, found = 2 + 1 / math.log2(3), 1 / math.log2(3) + 2 / math.log2(4)  # grades count in nDCG
    np.testing.assert_allclose(values["nDCG@10"], [found / ideal, 1, 0])


def test_cutoffs_and_average_precision():
    qrels = {"q": {f"r{i}": 1 for i in range(3)}}
    run = {"q": {f"p{i:02}": -float(i) for i in range(30)} | {"r0": -9.5, "r1": -10.5, "r2": 1.0}}
    values = metrics.per_query(qrels, run, ["RR", "AP", "R@5", "R@20", "RR@10"])
    assert values["RR"][0] == values["RR@10"][0] == 1
    assert values["AP"][0] == pytest.approx((1 + 2 / 12 + 3 / 14) / 3)
    assert values["R@5"][0] == pytest.approx(1 / 3)
    assert values["R@20"][0] == 1


@pytest.mark.parametrize(("rank", "at_10", "at_100"), [(10, 0.1, 0.1), (11, 0, 1 / 11), (100, 0, 0.01), (101, 0, 0)])
def test_reciprocal_rank_counts_the_first_10_or_100_passages(rank, at_10, at_100):
    run = {"q": {("r" if i == rank else f"p{i}"): -float(i) for i in range(1, 121)}}
    values = metrics.per_query({"q": {"r": 1}}, run)
    assert (values["RR@10"][0], values["RR@100"][0]) == pytest.approx((at_10, at_100))


def test_ties_are_broken_alike_by_all_measures_whatever_the_order():
    qrels = {"q": {"b": 1}}
    for order in ("abc", "cba", "bac"):
        values = metrics.per_query(qrels, {"q": dict.fromkeys(order, 1.0)}, ["RR@10", "RR", "nDCG@10"])
        assert values["RR@10"][0] == values["RR"][0] == 0.5
        assert values["nDCG@10"][0] == pytest.approx(1 / math.log2(3))


def test_a_written_run_measures_the_same_elsewhere(tmp_path):
    run = {"q1": {"a": 0.1, "b": 0.1, "x": 0.30000001}, "q2": {"d": 0.2}}
    metrics.write_trec_run(tmp_path / "50.run", run, tag="elasticlm-50")
    assert (tmp_path / "50.run").read_text().splitlines()[1] == "q1 Q0 b 2 0.1 elasticlm-50"
    read = ir_measures.read_trec_run(str(tmp_path / "50.run"))
    qrels = [ir_measures.Qrel(qid, pid, grade) for qid, grades in QRELS.items() for pid, grade in grades.items()]
    theirs = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, read)[ir_measures.nDCG @ 10]
    assert theirs == pytest.approx(metrics.mean(metrics.per_query(QRELS, run)["nDCG@10"]))


def test_a_run_whose_ids_hold_blanks_is_refused(tmp_path):
    with pytest.raises(InputError, match="'a b'"):
        metrics.write_trec_run(tmp_path / "50.run", {"q": {"a b": 1.0}}, tag="t")


def test_a_run_joins_what_an_index_returned():
    run = metrics.make_run(["q1", "q2"], np.array([[2.0, 1.0], [3.0, -1.0]]), [["a", "b"], ["c"]])
    assert run == {"q1": {"a": 2.0, "b": 1.0}, "q2": {"c": 3.0}}


def test_retention_is_the_ratio_of_means_with_an_interval_around_it():
    teacher = np.random.default_rng(1).random(400)
    student = teacher * 0.8 + np.random.default_rng(2).normal(0, 0.1, 400)
    value, low, high = metrics.retention(student, teacher)
    assert value == pytest.approx(student.mean() / teacher.mean())
    assert low < value < high
    assert high - low < 0.06
    assert metrics.retention(student, teacher) == [value, low, high]  # seeded
    assert metrics.retention(student, teacher, seed=1) != [value, low, high]


def test_the_bootstrap_is_paired():
    teacher = np.random.default_rng(1).random(50)
    np.testing.assert_allclose(metrics.retention(teacher / 2, teacher), [0.5, 0.5, 0.5])


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for trial in range(200):
        teacher = rng.random(60)
        low, high = metrics.retention(teacher * rng.choice([0.6, 1.0], 60), teacher, samples=200, seed=trial)[1:]
        covered += low <= 0.8 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_retention_of_nothing_is_none():
    assert metrics.retention(np.ones(3), np.zeros(3)) is None


def test_queries_that_a_measure_does_not_apply_to_are_left_out():
    nan = np.nan
    assert metrics.mean(np.array([1, nan, 0])) == 0.5
    assert metrics.retention(np.array([1, nan, 0.5]), np.array([1, nan, 1]))[0] == 0.75


def test_a_difference_is_told_from_chance():
    rng = np.random.default_rng(3)
    first = rng.random(300)
    (value, low, high), p = metrics.difference(first, first + rng.normal(0.05, 0.1, 300))
    assert low < value < high
    assert low > 0
    assert p < 0.01
    (value, low, high), p = metrics.difference(first, first + rng.normal(0, 0.1, 300) - 0.001)
    assert low < 0 < high
    assert p > 0.05
    assert metrics.difference(first, first) == ([0.0, 0.0, 0.0], 1.0)
