"""Names of splits: dev and validation are one split, and MNLI has two of it."""

import json

import pytest
from sets import write_hub_mnli

from elasticlm.errors import InputError
from elasticlm.retrieval.data_specs import load_labelled
from elasticlm.retrieval.split_names import split_among

LABELS = ("entailment", "neutral", "contradiction")
MNLI = ("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched")


@pytest.mark.parametrize(
    ("wanted", "names", "found"),
    [
        ("dev", ("train", "validation"), "validation"),
        ("validation", ("dev",), "dev"),
        ("dev", ("dev", "validation"), "dev"),
        ("dev", MNLI, "validation_matched"),
        ("validation", MNLI, "validation_matched"),
        ("dev_mismatched", MNLI, "validation_mismatched"),
        ("validation_mismatched", ("dev_matched", "dev_mismatched"), "dev_mismatched"),
        ("validation", ("dev_matched", "dev_mismatched"), "dev_matched"),
        ("test", MNLI, None),
        ("dev", ("train",), None),
    ],
)
def test_the_first_name_that_a_set_has_counts(wanted, names, found):
    assert split_among(wanted, names) == found


@pytest.fixture
def mnli_folder(tmp_path):
    """A folder glue:DIR with both dev splits of MNLI."""
    for split, label in (("dev_matched", 0), ("dev_mismatched", 2)):
        row = {"sentence1": f"Rain fell, {split}.", "sentence2": "It was wet.", "label": label}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


def test_dev_and_validation_of_mnli_are_its_matched_split_and_that_is_said(mnli_folder, tmp_path, capsys):
    for spec in (f"glue:{mnli_folder}", f"hf:{write_hub_mnli(tmp_path / 'hub')}"):
        matched = load_labelled(spec, "dev", LABELS)
        said = capsys.readouterr().err
        assert f"{spec}: split dev is " in said
        assert "_mismatched" in said
        assert matched.firsts == load_labelled(spec, "validation", LABELS).firsts
        assert matched.pairs == load_labelled(spec, "validation_matched", LABELS).pairs
        capsys.readouterr()
        assert load_labelled(spec, "dev_mismatched", LABELS).pairs != matched.pairs
        assert "split dev" not in capsys.readouterr().err


def test_a_split_that_is_missing_is_refused_with_those_that_exist(mnli_folder):
    with pytest.raises(InputError, match=r"no split 'train'.*dev_matched, dev_mismatched"):
        load_labelled(f"glue:{mnli_folder}", "train", LABELS)
