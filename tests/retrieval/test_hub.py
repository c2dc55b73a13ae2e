import pandas as pd
import pytest
from sets import CARD, PASSAGES, QRELS, write_hub_beir, write_hub_tevatron, write_jsonl, write_tsv

from elasticlm.errors import InputError
from elasticlm.retrieval import hub_dataset as hub
from elasticlm.retrieval.data_specs import load_corpus, load_everything, load_queries, load_retrieval, load_texts


@pytest.fixture
def beir_on_hub(tmp_path):
    """The readable set as the hub keeps BEIR: passages, queries and judgements as configurations."""
    return write_hub_beir(tmp_path / "tiny-set")


@pytest.fixture
def texts_on_hub(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for split, count in (("train", 30), ("test", 5)):
        rows = [{"text": f"Snow fell on town {i} all day. It was cold there in the {split}."} for i in range(count)]
        pd.DataFrame(rows).to_parquet(folder / f"{split}-00000.parquet")
    return folder


def test_beir_on_the_hub_equals_beir_in_a_folder(beir_on_hub, beir_folder):
    ours, theirs = load_retrieval(f"hf:{beir_on_hub}", "dev"), load_retrieval(f"beir:{beir_folder}", "test")
    assert ours.split_sha256 == theirs.split_sha256
    assert ours.passages == theirs.passages
    assert ours.queries == theirs.queries
    assert load_corpus(f"hf:{beir_on_hub}").sha256 == load_corpus(f"beir:{beir_folder}").sha256
    assert load_queries(f"hf:{beir_on_hub}", "train")[0] == ["q6", "q7"]


def test_judgements_may_lie_in_a_data_set_of_their_own(beir_on_hub):
    qrels = beir_on_hub.with_name("tiny-set-qrels")
    qrels.mkdir()
    for split, rows in QRELS.items():
        (beir_on_hub / f"{split}.jsonl").unlink()
        write_tsv(qrels / f"{split}.tsv", rows)
    for table in ("corpus", "queries"):
        pd.read_json(beir_on_hub / f"{table}.jsonl", lines=True).to_parquet(beir_on_hub / f"{table}.parquet")
        (beir_on_hub / f"{table}.jsonl").unlink()
    card = CARD.split("- config_name: default")[0].replace(".jsonl", ".parquet") + "---\n"
    (beir_on_hub / "README.md").write_text(card)
    assert load_retrieval(f"hf:{beir_on_hub}", "test").query_ids == ["q1", "q2", "q3", "q4", "q5"]


def test_what_a_set_lacks_is_counted(beir_on_hub, capsys):
    for name, old, new in (("test", '"p9"', '"p99"'), ("test", '"q4"', '"q44"'), ("corpus", PASSAGES[3][2], "")):
        file = beir_on_hub / f"{name}.jsonl"
        file.write_text(file.read_text().replace(old, new))
    corpus, data = load_corpus(f"hf:{beir_on_hub}"), load_retrieval(f"hf:{beir_on_hub}", "dev")
    assert corpus.ids == [pid for pid, _, _ in PASSAGES]
    assert data.query_ids == ["q1", "q2", "q3", "q5"]
    assert data.qrels["q5"] == {"p99": 1}
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf:")]
    assert line.endswith("1 judged queries without a text are left out, 1 judged passages are not in the corpus")


def test_a_column_of_text_gives_paragraphs_sentences_and_halves(texts_on_hub):
    texts = list(load_texts(f"hf:{texts_on_hub}", "train"))
    assert len(texts) == 30
    assert sorted(load_texts(f"hf:{texts_on_hub}", "train", seed=1)) == sorted(texts)
    assert list(load_texts(f"hf:{texts_on_hub}", "train", seed=1)) != texts
    assert set(texts) < set(load_everything(f"hf:{texts_on_hub}"))
    assert texts[7] == "Snow fell on town 7 all day. It was cold there in the train."
    assert load_queries(f"hf:{texts_on_hub}", "train")[1][0] == "Snow fell on town 0 all day."
    data = load_retrieval(f"hf:{texts_on_hub}", "test")
    assert (data.queries[2], data.passages[2]) == ("Snow fell on town 2 all day.", "It was cold there in the test.")


@pytest.mark.slow
def test_a_large_text_is_streamed_and_cut(texts_on_hub, monkeypatch, capsys):
    monkeypatch.setattr(hub, "LARGE_BYTES", -1)
    monkeypatch.setattr(hub, "STREAMED_ROWS", 8)
    assert len(load_corpus(f"hf:{texts_on_hub}").ids) == 8
    assert "streaming its first 8 rows" in capsys.readouterr().err
    whole = list(load_texts(f"hf:{texts_on_hub}", "train", seed=0))  # running text is not cut: taken as it comes
    assert len(whole) == 30
    assert whole == list(load_texts(f"hf:{texts_on_hub}", "train", seed=0))


def test_what_cannot_be_loaded_is_one_line(texts_on_hub):
    with pytest.raises(InputError, match=r"no split 'tset' \(there: train, test\)"):
        load_texts(f"hf:{texts_on_hub}", "tset")
    with pytest.raises(InputError, match="no such folder"):
        load_texts("hf:./no/such/folder")
    pd.DataFrame({"a": [1], "b": [2]}).to_parquet(texts_on_hub / "train-00000.parquet")
    with pytest.raises(InputError) as error:
        load_texts(f"hf:{texts_on_hub}", "train")
    assert "\n" not in str(error.value)


def test_a_data_set_that_is_not_there_is_one_line():
    with pytest.raises(InputError, match="hf:elasticlm-tests/no-such-set cannot be loaded") as error:
        load_texts("hf:elasticlm-tests/no-such-set")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("squad", ("squad", None)),
        ("BeIR/scifact", ("BeIR/scifact", None)),
        ("nyu-mll/glue/sst2", ("nyu-mll/glue", "sst2")),
    ],
)
def test_name_and_configuration_are_told_apart(name, expected):
    assert hub._path_and_config(name) == expected


@pytest.fixture
def tevatron_on_hub(tmp_path):
    """Two queries in Tevatron's form; passage p2 answers one of them and is a negative of the other."""
    return write_hub_tevatron(tmp_path / "tevatron", [("what melts", "p1", ["p2", "p3"]), ("caves", "p2", ["p4"])])


def test_tevatrons_rows_are_queries_with_their_passages(tevatron_on_hub):
    spec = f"hf:{tevatron_on_hub}"
    data = load_retrieval(spec, "train")
    assert (data.query_ids, data.queries) == (["0", "1"], ["what melts", "caves"])
    assert data.passage_ids == ["p1", "p2", "p3", "p4"] == load_corpus(spec).ids
    assert data.qrels == {"0": {"p1": 1}, "1": {"p2": 1}}
    assert load_queries(spec, "train") == (data.query_ids, data.queries)
    assert sorted(load_texts(spec, "train", seed=0)) == sorted(data.passages)
    assert list(load_everything(spec)) == 2 * list(data.passages) + 2 * data.queries  # both splits


@pytest.fixture
def tevatron_corpus(tmp_path):
    """All passages in the form of Tevatron's corpora."""
    folder = tmp_path / "tevatron-corpus"
    folder.mkdir()
    pd.DataFrame(PASSAGES, columns=["docid", "title", "text"]).to_parquet(folder / "train-00000.parquet")
    return folder


def test_tevatrons_corpora_are_passages_with_ids_and_titles(tevatron_corpus):
    corpus = load_corpus(f"hf:{tevatron_corpus}")
    assert list(corpus.ids) == [pid for pid, _, _ in PASSAGES]
    assert corpus.passages[0] == "glacier the glacier melts slow in the warm sun"
    assert sorted(load_texts(f"hf:{tevatron_corpus}", None, seed=0)) == sorted(corpus.passages)
    pd.DataFrame([("p1", "", "a"), ("p1", "", "b")], columns=["docid", "title", "text"]).to_parquet(
        tevatron_corpus / "train-00000.parquet"
    )
    with pytest.raises(InputError, match="row 1: duplicate docid 'p1'"):
        load_corpus(f"hf:{tevatron_corpus}")


def test_tevatrons_answers_are_read_over_another_sets_passages(tmp_path, tevatron_corpus):
    folder = tmp_path / "questions"
    folder.mkdir()
    rows = [{"query_id": str(i), "query": query, "answers": answers, "positive_passages": [], "negative_passages": []}
            for i, (query, answers) in enumerate([("what pulls the water", ["moon"]), ("who", ["nobody", "no one"])])
            ]  # fmt: skip
    write_jsonl(folder / "test.jsonl", rows)
    with pytest.raises(InputError, match="no passages to search; name their data spec with --corpus"):
        load_retrieval(f"hf:{folder}", "test")
    data = load_retrieval(f"hf:{folder}", "test", corpus=f"hf:{tevatron_corpus}")
    assert data.answers == {"0": ["moon"], "1": ["nobody", "no one"]}
    assert (len(data.passage_ids), data.keep_self_hits, data.judged) == (10, True, {})


def test_a_set_that_is_a_script_is_read_from_the_hubs_conversion(tevatron_corpus, monkeypatch):
    """As datasets refuses the set itself; what it loads of the conversion is in the folder."""
    import datasets

    asked = []
    for name in ("get_dataset_config_names", "get_dataset_split_names", "load_dataset_builder", "load_dataset"):
        real = getattr(datasets, name)

        def refusing(path, *args, revision=None, real=real, name=name, **options):
            if revision is None:
                raise RuntimeError("Dataset scripts are no longer supported, but found wikipedia-nq-corpus.py")
            asked.append((name, revision))
            return real(path, *args, **options)

        monkeypatch.setattr(datasets, name, refusing)
    assert len(load_corpus(f"hf:{tevatron_corpus}").ids) == 10
    assert {revision for _, revision in asked} == {"refs/convert/parquet"}
    assert len({name for name, _ in asked}) == 4
