import json

import pytest

from elasticlm.errors import InputError
from elasticlm.retrieval import docstrings as pydoc
from elasticlm.retrieval.data_specs import load_corpus, load_queries, load_retrieval

PACKAGES = {"argparse", "asyncio", "collections", "concurrent", "csv", "email", "http", "json", "logging", "pathlib",
            "shutil", "statistics", "string", "subprocess", "typing", "unittest", "urllib", "zipfile"}  # fmt: skip

SOURCE = b'''
"""Tools for streams of rain.

They are slow, and they should be used with care where the water is high."""

class Basin:
    """A basin that keeps the water of a stream.

    It overflows when more water comes in than the basin can hold, which is said with :class:`~rain.Flood`.

    Parameters
    ----------
    size : int
        Litres that fit into it.

    >>> Basin(3)
    Basin(3)
    """

    def fill(self, litres):
        """Fill the basin with water from a stream.

        Where the litres are more than what is left, the rest of them is lost to the ground below it."""

    def empty(self):
        """Empty the basin."""

    def _leak(self):
        """Lose some of the water to the ground below.

        This is what a basin does when it is old and nobody has taken care of it for a long time."""
'''


@pytest.fixture
def standard_library_only(monkeypatch, tmp_path):
    """pydoc over some modules of the standard library: real, and read in a second."""
    modules = [(name, path) for name, path in pydoc._modules() if name.partition(".")[0] in PACKAGES]
    monkeypatch.setattr(pydoc, "_modules", lambda: iter(modules))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return modules


def test_public_docstrings_become_summary_and_rest_under_their_class():
    module, basin, fill = pydoc.module_docstrings("rain.streams", SOURCE)
    assert (module.title, module.summary) == ("rain.streams", "Tools for streams of rain.")
    assert (basin.title, basin.name) == (fill.title, "Basin") == ("rain.streams.Basin", "Basin")
    assert (fill.name, fill.summary) == ("fill", "Fill the basin with water from a stream.")
    assert fill.rest.startswith("Where the litres are more")


def test_the_rest_is_running_text():
    (_, basin, _) = pydoc.module_docstrings("rain.streams", SOURCE)
    assert "rain.Flood" in basin.rest
    assert not any(mark in basin.rest for mark in (">>>", "----", ":class:", "`"))
    assert "Litres that fit" in basin.rest


@pytest.mark.parametrize(
    "docstring",
    [
        "Return the basin of a stream that was filled.",
        "Return basin.\n\nThe basin that is returned is the one that was filled with water from the stream of rain.",
        "Fill the basin with water from a stream.\n\nShort.",
        "Fill the basin with the water.\n\nTo fill the basin with the water of a stream is what this is used for, and "
        "it is fast. Fill the basin with the water.",
        "Füllt das Becken mit dem Wasser.\n\nWenn mehr Wasser kommt als Platz ist, geht der Rest davon einfach "
        "verloren und kommt nicht zurück.",
        "Fill the basin which is used, deprecated.\n\nUse the other basin for all of the water that is in the stream, "
        "since it is larger and not slow.",
    ],
)
def test_trivial_docstrings_are_left_out(docstring):
    assert pydoc.summary_and_rest(docstring) is None


def test_docstrings_that_stand_twice_are_left_out():
    docs = [pydoc.Docstring("rain", "rain", f"f{i}", f"Summary of the number {'x' * i}.", f"rest {'y' * i}")
            for i in range(1, 8)]  # fmt: skip
    same_summary = pydoc.Docstring("rain", "rain", "g", docs[0].summary, "another rest")
    same_rest = pydoc.Docstring("rain", "rain", "h", "Another summary.", docs[1].rest)
    chosen = pydoc.select([*docs, same_summary, same_rest], 100).corpus
    assert sorted(doc.name for doc in chosen) == ["f3", "f4", "f5", "f6", "f7"]


def test_no_title_makes_up_the_set():
    letters = "abcdefghijklmnopqrstuvwxyz"
    docs = [pydoc.Docstring("rain", "rain", f"f{i}", f"Summary {c}.", f"rest {c}") for i, c in enumerate(letters)]
    assert len(pydoc.select(docs, 100).corpus) == pydoc.PER_TITLE


def test_the_set_is_made_once_and_the_same_every_time(standard_library_only, monkeypatch, tmp_path):
    first = load_retrieval("pydoc", "test")
    monkeypatch.setattr(pydoc, "read_docstrings", lambda: pytest.fail("made a second time"))
    assert load_retrieval("pydoc", "test") == first
    monkeypatch.undo()
    modules = list(reversed(standard_library_only))  # folders are listed in any order
    monkeypatch.setattr(pydoc, "_modules", lambda: iter(modules))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert load_retrieval("pydoc", "test") == first


def test_it_is_made_anew_for_other_packages(standard_library_only, monkeypatch):
    key = pydoc.environment_key()
    monkeypatch.setattr(pydoc, "_distributions", dict)
    assert pydoc.environment_key() != key


def test_the_set_is_a_fair_benchmark(standard_library_only):
    splits = {split: load_retrieval("pydoc", split) for split in ("train", "dev", "test")}
    corpus = load_corpus("pydoc")
    assert len(corpus.ids) > 200
    assert len(set(corpus.titles)) < 0.8 * len(corpus.ids)  # titles are shared
    assert all(corpus.titles)
    queries = [query for data in splits.values() for query in data.queries]
    assert len(set(queries)) == len(queries)
    passages = dict(zip(corpus.ids, corpus.passages, strict=True))
    for data in splits.values():
        for qid, query in zip(data.query_ids, data.queries, strict=True):
            ((pid, grade),) = data.qrels[qid].items()
            assert grade == 1
            assert len(query.split()) >= 5
            assert query not in passages[pid]
    assert 0.1 < len(splits["test"].queries) / len(queries) < 0.3


def test_training_without_labels_has_more_summaries_and_none_of_the_other_splits(standard_library_only):
    _, train = load_queries("pydoc:100", "train")
    judged = load_retrieval("pydoc:100", "train").queries
    assert len(judged) < 100 < len(train)
    assert set(judged) < set(train)
    for split in ("dev", "test"):
        assert not set(load_queries("pydoc:100", split)[1]) & set(load_queries("pydoc", "train")[1])


def test_its_folder_is_a_beir_set(standard_library_only, tmp_path):
    load_corpus("pydoc:50")
    (folder,) = (tmp_path / "elasticlm" / "pydoc").iterdir()
    data = load_retrieval(f"beir:{folder}", "test")
    assert len(data.passages) == 50
    assert json.loads((folder / "corpus.jsonl").read_text().splitlines()[0])["title"]


@pytest.mark.parametrize("spec", ["pydoc:0", "pydoc:all", "pydoc:5001", "pydoc:-3"])
def test_a_size_out_of_range_is_refused(spec):
    with pytest.raises(InputError, match="N from 1 to 5000"):
        load_corpus(spec)
