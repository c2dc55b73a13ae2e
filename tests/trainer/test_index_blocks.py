"""A corpus of several blocks: encoded block by block, continued where it stopped, the same as in one piece."""

import json

import numpy as np
import pytest
from random_texts import WORDS
from sets import write_jsonl, write_tsv

from elasticlm.errors import InputError
from elasticlm.model.teacher import load_model
from elasticlm.retrieval.data_specs import load_corpus
from elasticlm.retrieval.passage_index import PassageIndex
from elasticlm.trainer import stored_vectors as vectors
from elasticlm.trainer.evaluate import main as evaluate
from elasticlm.trainer.index import main as index
from elasticlm.trainer.training_texts import TokenizedTexts

PASSAGES, BLOCK, EMPTY = 3000, 500, (7, 1499, 2998)  # rows of the empty passages
FILES = ("passages.faiss", "ids.txt", "index.json")


class StoppedError(Exception):
    """Stands for a kill between two blocks."""


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "BLOCK", BLOCK)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The spec of a set of 3,000 passages of 4 to 12 words, three of them empty, and 10 queries."""
    folder = tmp_path_factory.mktemp("blocks") / "set"
    return f"beir:{write_set(folder)}"


def write_set(folder, seed=0):
    random = np.random.default_rng(seed)
    texts = [" ".join(random.choice(WORDS.split(), random.integers(4, 13))) for _ in range(PASSAGES)]
    folder.mkdir()
    write_jsonl(folder / "corpus.jsonl", ({"_id": f"p{row}", "title": "", "text": "" if row in EMPTY else text}
                                          for row, text in enumerate(texts)))  # fmt: skip
    write_jsonl(folder / "queries.jsonl", ({"_id": f"q{row}", "text": texts[300 * row]} for row in range(10)))
    write_tsv(folder / "qrels" / "test.tsv", [(f"q{row}", f"p{300 * row}", 1) for row in range(10)])
    return folder


@pytest.fixture(scope="module")
def in_one_piece(data, tiny_bert, tmp_path_factory):
    """Files of the index whose passages are all tokenised first and whose vectors are all in memory."""
    corpus, encoder = load_corpus(data), load_model(str(tiny_bert))
    findable = corpus.findable
    folder = tmp_path_factory.mktemp("one")
    texts = TokenizedTexts.of(encoder, list(findable.passages), "passage")
    stored = vectors.stored_vectors(encoder, texts, vectors.Processes("fp32"), desc="", folder=folder / "v")
    made = PassageIndex.build(stored.all().numpy(), list(findable.ids), fingerprint=encoder.fingerprint(),
                              corpus_sha256=corpus.sha256)  # fmt: skip
    made.save(folder / "index")
    return {name: (folder / "index" / name).read_bytes() for name in FILES}


@pytest.fixture
def encoded(monkeypatch):
    """Numbers of passages in the blocks that were encoded; ``encoded.stop_after(n)`` stops a run after n blocks."""

    class Encoded(list):
        limit = None

        def stop_after(self, blocks):
            self.limit = blocks

    found, encode = Encoded(), vectors.encode

    def counting(model, texts, *args, **options):
        if len(found) == found.limit:
            raise StoppedError
        found.append(len(texts))
        return encode(model, texts, *args, **options)

    monkeypatch.setattr(vectors, "encode", counting)
    return found


def files_of(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def test_an_index_made_in_blocks_has_the_files_of_one_made_in_one_piece(data, tiny_bert, in_one_piece, tmp_path):
    index(["--model", str(tiny_bert), "--data", data, "--output", str(tmp_path / "index")])
    assert files_of(tmp_path / "index") == in_one_piece
    assert [file.name for file in tmp_path.iterdir()] == ["index"]


def test_an_interrupted_index_continues_after_the_last_whole_block(
    data, tiny_bert, in_one_piece, encoded, tmp_path, capsys
):
    command = ["--model", str(tiny_bert), "--data", data, "--output", str(tmp_path / "index")]
    encoded.stop_after(3)
    with pytest.raises(StoppedError):
        index(command)
    assert encoded == [500, 500, 500]
    assert not (tmp_path / "index").exists()
    encoded.stop_after(None)
    index(command)
    assert encoded == [500, 500, 500, 500, 500, 497]
    assert "passages: 1,500 of 2,997 have been encoded before" in capsys.readouterr().err
    assert files_of(tmp_path / "index") == in_one_piece


def test_vectors_of_other_data_are_left_alone(data, tiny_bert, in_one_piece, encoded, tmp_path, capsys):
    other = f"beir:{write_set(tmp_path / 'other', seed=1)}"
    encoded.stop_after(1)
    with pytest.raises(StoppedError):
        index(["--model", str(tiny_bert), "--data", other, "--output", str(tmp_path / "index")])
    encoded.stop_after(None)
    index(["--model", str(tiny_bert), "--data", data, "--output", str(tmp_path / "index")])
    assert sum(encoded) == 500 + 2997
    assert "index.vectors: the vectors there are of other data or another model" in capsys.readouterr().err
    assert files_of(tmp_path / "index") == in_one_piece


def test_what_an_index_cannot_be_made_of_is_refused_before_a_passage_is_encoded(tiny_bert, encoded, tmp_path):
    folder = write_set(tmp_path / "set")
    command = ["--model", str(tiny_bert), "--data", f"beir:{folder}", "--output", str(tmp_path / "index")]
    with pytest.raises(InputError, match="FAISS index kind 'Flatt'"):
        index([*command, "--kind", "Flatt"])
    with open(folder / "corpus.jsonl", "a") as file:
        file.write('{"_id": "two\\nlines", "text": "ice"}\n')
    with pytest.raises(InputError, match="holds a line break"):
        index(command)
    assert not encoded


def test_passages_encoded_in_blocks_are_evaluated_like_an_index(data, tiny_bert, encoded, tmp_path):
    index(["--model", str(tiny_bert), "--data", data, "--output", str(tmp_path / "index")])
    command = ["--model", str(tiny_bert), "--data", data, "--output"]
    evaluate([*command, str(tmp_path / "with.json"), "--index", str(tmp_path / "index")])
    assert sum(encoded) == 2997
    evaluate([*command, str(tmp_path / "without.json")])
    assert sum(encoded) == 2 * 2997
    found, expected = (json.loads((tmp_path / name).read_text()) for name in ("without.json", "with.json"))
    assert found["metrics"] == expected["metrics"]
    assert found["metrics"]["teacher"]["R@100"] == 1
    evaluate([*command, str(tmp_path / "again.json")])  # by the vectors in the user's cache
    assert sum(encoded) == 2 * 2997
