import pytest

from elasticlm.errors import InputError
from elasticlm.retrieval.data_specs import load_corpus, load_queries, load_retrieval, load_texts
from elasticlm.retrieval.text_file import halves, sentences

PARAGRAPH = "Rain number {0} fell on the town all night. The river rose over the {0} old stones. Nobody slept well."


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(PARAGRAPH.format(number) + "\n\n" for number in range(200)))
    return path


def test_paragraphs_are_the_passages(text_file):
    corpus = load_corpus(f"text:{text_file}")
    assert corpus.passages == [PARAGRAPH.format(number) for number in range(200)]
    assert corpus.ids[:2] == ["1", "3"]  # line numbers


def test_splits_share_no_paragraph_and_leave_none_out(text_file):
    train, dev, test = (load_texts(f"text:{text_file}", split) for split in ("train", "dev", "test"))
    assert sorted(train + dev + test) == sorted(load_texts(f"text:{text_file}", None))
    assert 160 < len(train) < 195


def test_a_paragraph_keeps_its_split_whatever_else_is_in_the_file(text_file):
    before = load_texts(f"text:{text_file}", "test")
    text_file.write_text("One more line of text.\n" + text_file.read_text())
    assert set(before) <= set(load_texts(f"text:{text_file}", "test"))


def test_queries_are_the_sentences_of_the_splits_own_paragraphs(text_file):
    _, queries = load_queries(f"text:{text_file}", "train")
    paragraphs = load_texts(f"text:{text_file}", "train")
    assert f"{paragraphs[0].split('.')[0]}." in queries
    assert "Nobody slept well." not in queries  # three words say too little
    assert all(any(query in paragraph for paragraph in paragraphs) for query in queries)


def test_a_line_of_one_sentence_is_a_query_however_short(tmp_path):
    (tmp_path / "queries.txt").write_text("ice\nhow do glaciers form?\nRain fell. The river rose all night.\n")
    _, queries = load_queries(f"text:{tmp_path}/queries.txt", "train")
    assert queries == ["ice", "how do glaciers form?", "The river rose all night."]


def test_a_pair_is_the_two_halves_of_a_paragraph(text_file):
    data = load_retrieval(f"text:{text_file}", "test")
    query_id = data.query_ids[0]
    (passage_id,) = data.qrels[query_id]
    passage = data.passages[data.passage_ids.index(passage_id)]
    assert f"{data.queries[0]} {passage}" in load_texts(f"text:{text_file}", "test")
    assert len(data.passages) == 200
    assert set(data.passage_ids) == set(load_corpus(f"text:{text_file}").ids)  # an index of paragraphs fits


def test_sentences_are_cut_at_their_ends_only():
    assert sentences("It was made by J. Smith for $3.50 a day. Then 1984 came ! Why?") == [
        "It was made by J. Smith for $3.50 a day.", "Then 1984 came !", "Why?",
    ]  # fmt: skip


def test_one_long_sentence_is_cut_at_its_middle_word():
    assert halves("one two three four five six seven eight") == ("one two three four", "five six seven eight")
    assert halves("one two three four five six seven") is None


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "no text"), (b"\n \n", "no text"), (b"good\ngr\xfcn\n", "line 2: not UTF-8"), (b"short\n", "split test")],
)
def test_a_text_without_use_is_refused(tmp_path, content, says):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        load_retrieval(f"text:{path}", "test")


def test_a_missing_file_and_an_unknown_split_are_refused(text_file):
    with pytest.raises(InputError, match="no such file"):
        load_texts(f"text:{text_file}.gone")
    with pytest.raises(InputError, match=r"no split 'tset'; a text file has train, dev and test"):
        load_texts(f"text:{text_file}", "tset")
