"""What a run is trained on: sources in turn, nothing that an excluded set shares."""

import json

import pytest

from elasticlm.errors import InputError
from elasticlm.trainer import mixture
from elasticlm.trainer.mixture import Exclusion
from elasticlm.trainer.training_pairs import load_pairs

LONG = "one two three four five six seven eight nine ten eleven twelve"


@pytest.fixture
def excluded(tmp_path):
    file = tmp_path / "excluded.txt"
    file.write_text(f"Before that, {LONG.upper()}!\nWhy is ice cold\n")
    return f"text:{file}"


@pytest.fixture
def sources(tmp_path):
    """Two files: 8 paragraphs of one sentence, and 3."""
    for name, count in (("a", 8), ("b", 3)):
        lines = [f"Paragraph {i} of file {name} says this." for i in range(count)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    return [f"text:{tmp_path}/{name}.txt" for name in "ab"]


def test_texts_that_share_ten_words_in_a_row_are_dropped(excluded):
    exclusion = Exclusion([excluded])
    shared = LONG.replace("one ", "1 ")  # eleven of its words stand there
    nine = " ".join(LONG.split()[:9]) + " and then something else"
    assert list(exclusion.keep([shared, nine, "Why is ice cold?", "why is ice so cold", LONG + " more"])) == [
        nine,
        "why is ice so cold",
    ]
    assert exclusion.report() == {"exclude": {"specs": [excluded], "texts_dropped": 3}}


def test_nothing_excluded_drops_nothing():
    exclusion = Exclusion([])
    assert list(exclusion.keep([LONG, LONG])) == [LONG, LONG]
    assert exclusion.report() == {}


def test_every_split_and_every_passage_of_an_excluded_set_counts(beir):
    exclusion = Exclusion([f"beir:{beir}"])
    rows = [json.loads(line)["text"] for line in (beir / "queries.jsonl").read_text().splitlines()]
    assert not any(map(exclusion.keeps, rows))


def test_sources_are_drawn_from_in_turn(sources):
    drawn = list(mixture.texts(sources, None, 7, 0, Exclusion([])))
    assert ["file b" in text for text in drawn] == [False, True, False, True, False, True, False]
    assert drawn == list(mixture.texts(sources, None, 100, 0, Exclusion([])))[:7]
    assert drawn != list(mixture.texts(sources, None, 7, 1, Exclusion([])))
    assert len(list(mixture.texts(sources, None, 100, 0, Exclusion([])))) == 11


def test_queries_stand_once(sources):
    drawn = list(mixture.queries([sources[0], sources[0], sources[1]], "train", 100, 0, Exclusion([])))
    assert len(drawn) == len(set(drawn))


def test_passages_come_from_the_specs_that_have_some(sources, tmp_path):
    assert len(list(mixture.passages([*sources, "glue:nowhere"], 100, 0, Exclusion([])))) == 11
    with pytest.raises(InputError, match="no passages there"):
        mixture.passages(["glue:somewhere"], 100, 0, Exclusion([]))


def test_pairs_of_several_sets_and_without_what_is_excluded(beir, tmp_path):
    one, two = (
        load_pairs([f"beir:{beir}"], "train", Exclusion([])),
        load_pairs([f"beir:{beir}"] * 2, "train", Exclusion([])),
    )
    assert two.positives[60:] == [[i + 80 for i in rows] for rows in one.positives]
    file = tmp_path / "x.txt"
    file.write_text("\n".join(one.passages[:5]))
    without = load_pairs([f"beir:{beir}"], "train", Exclusion([f"text:{file}"]))
    assert len(without.passages) < 80
    assert not set(one.passages[1:5]) & set(without.passages)
    assert [without.passages[rows[0]] for rows in without.positives] == [
        passage for passage in (one.passages[rows[0]] for rows in one.positives) if passage in without.passages
    ]
