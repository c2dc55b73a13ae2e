"""Labelled sentences: what is read, which labels there are, and that a bad row is named."""

import json

import datasets
import pytest

from elasticlm.errors import InputError
from elasticlm.retrieval.data_specs import load_labelled

PAIRS = [("Rain fell.", "Snow fell.", 0), ("It was cold.", "It froze.", 1)]


def glue(folder, rows, name="mini", split="train"):
    lines = [json.dumps(dict(zip(("sentence1", "sentence2", "label"), row, strict=True))) for row in rows]
    (folder / name).mkdir(exist_ok=True)
    (folder / name / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return f"glue:{folder / name}"


def test_classes_are_numbers_and_glues_own_names_are_known(tmp_path):
    data = load_labelled(glue(tmp_path, PAIRS), "train")
    assert (data.firsts, data.seconds) == (["Rain fell.", "It was cold."], ["Snow fell.", "It froze."])
    assert (data.labels, data.targets.tolist(), data.targets.dtype.kind) == (("0", "1"), [0, 1], "i")
    assert load_labelled(glue(tmp_path, PAIRS, "rte"), "train").labels == ("entailment", "not_entailment")
    assert data.kept([1]).pairs == [("It was cold.", "It froze.")]


def test_fractions_are_a_regression_and_words_are_names(tmp_path):
    values = load_labelled(glue(tmp_path, [("a", "b", 2.5), ("c", "d", 1)], "stsb"), "train")
    assert (values.labels, values.targets.tolist(), values.targets.dtype.kind) == (("similarity",), [2.5, 1.0], "f")
    named = load_labelled(glue(tmp_path, [("a", None, "up"), ("b", None, "down")]), "train")
    assert (named.labels, named.targets.tolist(), named.seconds) == (("down", "up"), [1, 0], None)


def test_what_a_model_knows_decides_over_what_a_split_shows(tmp_path):
    spec = glue(tmp_path, [("a", "b", 0)], split="dev")
    assert load_labelled(spec, "dev", ["no", "yes"]).targets.tolist() == [0]
    assert load_labelled(glue(tmp_path, [("a", "b", 3)]), "train", ["value"]).targets.tolist() == [3.0]


@pytest.mark.parametrize(
    ("row", "labels", "message"),
    [
        (("a", "b", 2), ["no", "yes"], "unknown label 2; the labels are no, yes"),
        (("a", "b", "maybe"), ["no", "yes"], "unknown label 'maybe'"),
        (("a", "b", -1), ["no", "yes"], "hidden test split"),
        (("a", "b", 1.5), ["no", "yes"], "unknown label 1.5"),
        (("a", "b", "high"), ["value"], "values"),
        (("a", "b", float("nan")), None, "nan is no number"),
        (("a", "b", True), None, "label True"),
        (("a", "b", None), None, "label None"),
        (("a", None, 1), None, "second sentence is missing"),
        ((" ", "b", 1), None, "first sentence is missing"),
        ((7, "b", 1), None, "first sentence is missing"),
    ],
)
def test_a_bad_row_is_refused_with_file_and_line(tmp_path, row, labels, message):
    spec = glue(tmp_path, [*PAIRS, row])
    with pytest.raises(InputError, match=rf"train.jsonl, line 3: .*{message}"):
        load_labelled(spec, "train", labels)


def test_what_is_no_labelled_set_is_refused(tmp_path):
    (tmp_path / "lines.txt").write_text("A paragraph of text.\n")
    with pytest.raises(InputError, match="no labelled sentences"):
        load_labelled(f"text:{tmp_path / 'lines.txt'}", "train")
    with pytest.raises(InputError, match="nothing to tell apart"):
        load_labelled(glue(tmp_path, [("a", "b", 0)]), "train")
    with pytest.raises(InputError, match="unknown label 2; rte has"):
        load_labelled(glue(tmp_path, [*PAIRS, ("a", "b", 2)], "rte"), "train")
    (tmp_path / "mini/train.jsonl").write_text('{"sentence1": "a"}\n')
    with pytest.raises(InputError, match="line 1: label None: expected"):
        load_labelled(f"glue:{tmp_path / 'mini'}", "train")


def test_the_hubs_columns_and_class_names_are_known(tmp_path):
    features = datasets.Features(
        {"question": datasets.Value("string"), "sentence": datasets.Value("string"),
         "label": datasets.ClassLabel(names=["entailment", "not_entailment"]), "idx": datasets.Value("int32")}
    )  # fmt: skip
    rows = {"question": ["Why?", "How?"], "sentence": ["So.", "Thus."], "label": [1, 0], "idx": [0, 1]}
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set/train-0.parquet")
    data = load_labelled(f"hf:{tmp_path / 'set'}", "train")
    assert data.pairs == [("Why?", "So."), ("How?", "Thus.")]
    assert (data.labels, data.targets.tolist()) == (("entailment", "not_entailment"), [1, 0])
