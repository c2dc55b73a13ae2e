"""glue:DIR as a source of sentences."""

import json

import pytest

from elasticlm.errors import InputError
from elasticlm.retrieval.data_specs import load_corpus, load_everything, load_queries, load_retrieval, load_texts


@pytest.fixture
def folder(tmp_path):
    rows = {
        "train": [("Rain fell.", "Snow fell."), ("It was cold. ", None), ("Rain fell.", "")],
        "dev": [("Sun.", None)],
    }
    for split, pairs in rows.items():
        lines = [json.dumps({"sentence1": a, "sentence2": b, "label": 0}) for a, b in pairs]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_both_sentences_of_a_split_are_queries_each_once(folder):
    assert load_queries(f"glue:{folder}", "train") == (
        ["1.1", "1.2", "2.1"],
        ["Rain fell.", "Snow fell.", "It was cold."],
    )
    assert list(load_everything(f"glue:{folder}"))[:2] == ["Sun.", "Rain fell."]


def test_what_it_lacks_is_one_line(folder):
    with pytest.raises(InputError, match=r"no split 'test'.*dev, train"):
        load_queries(f"glue:{folder}", "test")
    for load in (load_corpus, load_retrieval, load_texts):
        with pytest.raises(InputError, match="glue:"):
            load(f"glue:{folder}")
    with pytest.raises(InputError, match="no such folder"):
        load_queries("glue:nowhere", "train")
    (folder / "train.jsonl").write_text('{"sentence1": "a"}\n{"sentence2": "b"}\n')
    with pytest.raises(InputError, match="line 2"):
        load_queries(f"glue:{folder}", "train")
