"""Wrong input to a command: one clear line, exit code 2, nothing half-written."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import elasticlm.__main__
import elasticlm.handlers.archive
from elasticlm import command
from elasticlm.retrieval.passage_index import PassageIndex
from elasticlm.schedule.latency import LatencyTable

OUTPUT = "made"


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_bert, tiny_artifact, tiny_beir):
    """A folder with `teacher`, `model` (levels 100, 50, 10, a table and no index) and `set`, all fit to be broken."""
    shutil.copytree(tiny_bert, tmp_path / "teacher")
    shutil.copytree(tiny_artifact, tmp_path / "model")
    shutil.copytree(tiny_beir, tmp_path / "set")
    LatencyTable.from_means({100: 3.0, 50: 2.0, 10: 1.0}).write(tmp_path / "model/latency.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text(encoding="utf-8") + text, encoding="utf-8")


def two_columns(place):
    append(place / "set/qrels/train.tsv", "train0\tp1\n")


def grade_in_words(place):
    append(place / "set/qrels/train.tsv", "train0\tp1\thigh\n")


def no_text(place):
    append(place / "set/corpus.jsonl", '{"_id": "p60", "title": "ice"}\n')


def truncated_weights(place):
    file = place / "model/model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])


def table_without_a_level(place):
    LatencyTable.from_means({100: 3.0, 50: 2.0}).write(place / "model/latency.csv")


def foreign_index(place):
    vectors = np.eye(3, 32, dtype="float32")
    PassageIndex.build(vectors, ["p0", "p1", "p2"], fingerprint="0" * 64, corpus_sha256=None).save(place / "index")


PRUNE = "prune --teacher teacher --data beir:set --levels 50 --output made"
EVALUATE = "evaluate --model model --teacher teacher --data beir:set --split test --output made"
ALIGN = "finetune --task align --model model --teacher teacher --data beir:set --max-steps 1 --output made"
ARCHIVE = "archive --model model --name tiny --output made"


@pytest.mark.parametrize(
    ("spoil", "words", "message"),
    [
        (None, PRUNE.replace("beir:set", "beir:nowhere"), "nowhere"),
        (None, PRUNE.replace("beir:set", "text:nowhere.txt"), "nowhere.txt"),
        (None, PRUNE.replace("--teacher teacher", "--teacher nowhere/at-all"), "nowhere/at-all"),
        (None, PRUNE.replace("--levels 50", "--levels 50,0"), "'0': expected a percentage"),
        (None, PRUNE.replace("--levels 50", "--levels 101"), "expected a percentage"),
        (two_columns, PRUNE, r"set/qrels/train\.tsv, line 122"),
        (grade_in_words, PRUNE, "'high'"),
        (no_text, EVALUATE, r"set/corpus\.jsonl, line 61"),
        (truncated_weights, EVALUATE, r"model\.safetensors: truncated"),
        (truncated_weights, ALIGN, r"model\.safetensors: truncated"),
        (foreign_index, EVALUATE + " --index index", "encoded by another model"),
        (foreign_index, ALIGN + " --index index", "encoded by another model"),
        (foreign_index, ARCHIVE + " --index index", "encoded by another model"),
        (table_without_a_level, ARCHIVE, "no row for level 10"),
        (None, ARCHIVE + " --policy fixed:30", "30"),
        (None, ALIGN.replace("--task align", "--task sing"), "sing"),
    ],
)
def test_bad_input_ends_with_one_line_and_code_2(place, capsys, spoil, words, message):
    if spoil:
        spoil(place)
    before = {path.name for path in place.iterdir()}
    name, *arguments = words.split()
    main = elasticlm.handlers.archive.main if name == "archive" else elasticlm.__main__.main
    with pytest.raises(SystemExit) as end:
        command.run(main, arguments if name == "archive" else [name, *arguments])
    error = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2
    assert error[-1].startswith("error: ")
    assert re.search(message, error[-1]), error[-1]
    made = {path.name for path in place.iterdir()} - before
    assert OUTPUT not in made or not any((place / OUTPUT).iterdir())
    assert not [name for name in made if name.endswith(".tmp")]
