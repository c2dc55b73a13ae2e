"""The paired tests against scipy, a case worked by hand, and measures computed anew without each example."""

import json
import time

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from elasticlm.retrieval import measures as metrics
from elasticlm.trainer import compare, evaluate, finetune
from elasticlm.trainer.evaluation.base import Evaluation
from elasticlm.trainer.evaluation.glue_measures import WITHOUT_EACH, f1, pearson, pseudo_values, spearman
from elasticlm.trainer.evaluation.significance import resampled_difference, t_test_p


def classes(seed, count=40):
    random = np.random.default_rng(seed)
    targets = random.integers(0, 2, count)
    return np.where(random.random(count) < 0.7, targets, 1 - targets), targets


def numbers(seed, count=40, *, tied=False):
    random = np.random.default_rng(seed)
    targets = random.normal(size=count)
    predictions = targets + random.normal(size=count)
    return (predictions.round(), (2 * targets).round()) if tied else (predictions, targets)


def test_the_t_test_is_scipys_over_the_queries_that_both_have():
    first, second = np.random.default_rng(0).random((2, 30))
    assert t_test_p(first, second) == stats.ttest_rel(second, first).pvalue
    gaps = first.copy()
    gaps[3] = np.nan
    kept = np.arange(30) != 3
    assert t_test_p(gaps, second) == stats.ttest_rel(second[kept], first[kept]).pvalue
    assert t_test_p(first, first) == t_test_p(first[:1], second[:1]) == 1.0
    assert t_test_p(np.zeros(5), np.ones(5)) < 1e-9


def test_the_t_test_by_hand():
    """Differences 1, 0, 2: mean 1, deviation 1, so t = sqrt(3) with two degrees of freedom."""
    p = t_test_p(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 5.0]))
    assert p == pytest.approx(1 - np.sqrt(3 / 5))  # the distribution of t with two degrees of freedom is closed


def test_f1_is_scikit_learns():
    for seed in range(5):
        predictions, targets = classes(seed)
        assert f1(predictions, targets) == pytest.approx(f1_score(targets, predictions))
    assert f1(np.zeros(3, int), np.zeros(3, int)) == 0.0


@pytest.mark.parametrize("name", WITHOUT_EACH)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tied", [False, True])
def test_without_each_example_a_measure_is_what_it_is_computed_anew(name, seed, tied):
    predictions, targets = classes(seed) if name == "F1" else numbers(seed, tied=tied)
    measure, without_each = WITHOUT_EACH[name]
    kept = ~np.eye(len(targets), dtype=bool)
    expected = [measure(predictions[rows], targets[rows]) for rows in kept]
    np.testing.assert_allclose(without_each(predictions, targets), expected, rtol=1e-9, atol=1e-12)
    n = len(targets)
    pseudo = n * measure(predictions, targets) - (n - 1) * np.array(expected)
    np.testing.assert_allclose(pseudo_values(name, predictions, targets), pseudo, rtol=1e-8, atol=1e-9)


def test_pseudo_values_by_hand():
    """Two hits, a false alarm and a miss: F1 = 4/6. Without a hit 2/4, without the others 4/5."""
    predictions, targets = np.array([1, 1, 1, 0]), np.array([1, 1, 0, 1])
    expected = [4 * 4 / 6 - 3 * 2 / 4] * 2 + [4 * 4 / 6 - 3 * 4 / 5] * 2
    np.testing.assert_allclose(pseudo_values("F1", predictions, targets), expected)


def test_a_correlation_of_constant_values_does_not_exist():
    values, constant = np.array([0.1, 0.4, 0.3]), np.full(3, 0.1)
    for name in ("Spearman", "Pearson"):
        assert np.isnan(pseudo_values(name, constant, values)).all()
    nearly = np.array([0.1, 0.1, 0.1, 0.7])  # constant without the last
    for name in ("Spearman", "Pearson"):
        found = pseudo_values(name, nearly, np.array([1.0, 2.0, 3.0, 4.0]))
        assert np.isnan(found).tolist() == [False, False, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_EACH)
def test_forty_thousand_examples_take_a_moment(name):
    predictions, targets = classes(0, 40_000) if name == "F1" else numbers(0, 40_000)
    start = time.process_time()
    found = pseudo_values(name, predictions, targets)
    assert time.process_time() - start < 20
    measure, _ = WITHOUT_EACH[name]
    assert found.mean() == pytest.approx(measure(predictions, targets), abs=1e-3)


def test_the_bootstrap_of_a_mean_is_that_of_difference():
    first, second = np.random.default_rng(0).random((2, 50))
    found = resampled_difference(lambda rows: (first[rows].mean(), second[rows].mean()), 50)
    interval, p = metrics.difference(first, second)
    assert found[0] == pytest.approx(interval)
    assert found[1] == p


def test_the_bootstrap_of_correlations_covers_the_difference():
    targets = np.random.default_rng(0).normal(size=300)
    noise = np.random.default_rng(1).normal(size=(2, 300))
    worse, better = targets + 2 * noise[0], targets + 0.5 * noise[1]
    for measure in (spearman, pearson):

        def both(rows, measure=measure):
            return measure(worse[rows], targets[rows]), measure(better[rows], targets[rows])

        (value, low, high), p = resampled_difference(both, 300, samples=200)
        assert value == measure(better, targets) - measure(worse, targets)
        assert 0 < low < value < high
        assert p == pytest.approx(2 / 201)
    (value, *_), p = resampled_difference(lambda rows: (np.nan, 1.0), 5, samples=10)
    assert np.isnan(value)
    assert np.isnan(p)


@pytest.fixture(scope="module")
def evaluations(tiny_artifact, tmp_path_factory):
    """Two real evaluations of each of two sets, classes and values, by classifiers trained for 3 and for 40 steps."""
    folder, random = tmp_path_factory.mktemp("evaluations"), np.random.default_rng(0)
    words = ("glacier", "sun", "moon", "river", "wolf", "bear", "tide", "wind")
    files = {}
    for name in ("classes", "values"):
        (folder / name).mkdir()
        for split, count in (("train", 120), ("dev", 40)):
            rows = []
            for _ in range(count):
                label = int(random.integers(2))
                text = " ".join([("ice", "gold")[label], *random.choice(words, 5)])
                target = label if name == "classes" else label + round(float(random.random()), 3)
                rows.append(json.dumps({"sentence1": text, "sentence2": None, "label": target}))
            (folder / name / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
        for steps in (3, 40):
            model, file = folder / f"{name}-{steps}", folder / f"{name}-{steps}.json"
            finetune.main(["--task", "classify", "--model", str(tiny_artifact), "--data", f"glue:{folder / name}",
                           "--max-steps", str(steps), "--batch-size", "8", "--lr", "3e-3", "--precision", "fp32",
                           "--threads", "1", "--output", str(model)])  # fmt: skip
            evaluate.main(["--model", str(model), "--data", f"glue:{folder / name}", "--split", "dev",
                           "--output", str(file)])  # fmt: skip
            files[name, steps] = file
    return files


@pytest.mark.parametrize(
    ("name", "measures"),
    [("classes", ["accuracy", "F1"]), ("values", ["squared error", "Spearman", "Pearson"])],
)
def test_two_evaluations_of_classifiers_are_compared_by_every_measure(evaluations, name, measures, capsys):
    files = [str(evaluations[name, steps]) for steps in (3, 40)]
    compare.main(files)
    out = capsys.readouterr().out.splitlines()
    differences = json.loads(out[-1])["differences"]
    assert {*differences} >= {"teacher", "100", "50", "10"}
    first, second = map(Evaluation.read, files)
    for row in ("100", "50", "10"):
        assert list(differences[row]) == measures
        for measure in measures[1:]:
            found = differences[row][measure]
            assert found["a"] == pytest.approx(first.metrics[row][measure], abs=1e-6)
            assert found["b"] == pytest.approx(second.metrics[row][measure], abs=1e-6)
            assert found["difference"][0] == pytest.approx(found["b"] - found["a"])
            assert found["difference"][1] <= found["difference"][0] <= found["difference"][2]
            pairs = [pseudo_values(measure, each.predictions[row], each.targets) for each in (second, first)]
            assert found["t_test_p"] == pytest.approx(stats.ttest_rel(*pairs).pvalue, nan_ok=True)
            assert any(line.split()[:2] == [row, measure] for line in out)
    compare.main([*files, "--rows", "10", "100"])
    across = json.loads(capsys.readouterr().out.splitlines()[-1])["differences"]["10 vs 100"]
    assert across[measures[1]]["a"] == differences["10"][measures[1]]["a"]
    assert across[measures[1]]["b"] == differences["100"][measures[1]]["b"]


def test_a_file_without_predictions_is_read_and_said_to_lack_them(evaluations, tmp_path, capsys):
    new = evaluations["classes", 40]
    fields = json.loads(new.read_text())
    assert len(fields["targets"]) == len(fields["predictions"]["50"]) == 40
    for added in ("predictions", "targets"):
        del fields[added]
    old = tmp_path / "old.json"
    old.write_text(json.dumps(fields))
    assert Evaluation.read(old).targets is None
    assert "predictions" not in Evaluation.read(old).to_json()
    compare.main([str(old), str(new)])
    captured = capsys.readouterr()
    assert list(json.loads(captured.out.splitlines()[-1])["differences"]["50"]) == ["accuracy"]
    assert f"{old}: F1 cannot be compared, since the file holds no predictions" in captured.err
    assert str(new) not in captured.err


def test_an_evaluation_is_written_and_read_with_its_predictions(evaluations):
    for name, kind in (("classes", "i"), ("values", "f")):
        read = Evaluation.read(evaluations[name, 40])
        assert read.targets.dtype.kind == read.predictions["50"].dtype.kind == kind
        fields = json.loads(evaluations[name, 40].read_text())
        assert read.to_json()["predictions"] == fields["predictions"]
