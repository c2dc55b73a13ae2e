import json

import numpy as np
import pytest
from sets import PASSAGES, write_beir

from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.teacher import load_model
from elasticlm.retrieval.data_specs import load_corpus
from elasticlm.retrieval.passage_index import PassageIndex
from elasticlm.trainer.index import main


def test_the_passages_of_an_artifact_are_encoded_by_its_teacher(tiny_artifact, tiny_bert, tmp_path, capsys):
    folder = write_beir(tmp_path / "set")
    main(["--model", str(tiny_artifact), "--data", f"beir:{folder}", "--output", str(tmp_path / "index")])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    index, teacher, corpus = (
        PassageIndex.load(tmp_path / "index"),
        load_model(tiny_bert),
        load_corpus(f"beir:{folder}"),
    )
    assert index.ids == [pid for pid, _, _ in PASSAGES]
    expected = teacher.embed(corpus.passages, kind="passage").numpy()
    np.testing.assert_allclose(index.vectors(), expected, atol=1e-5)
    assert index.fingerprint == teacher.fingerprint() == result["fingerprint"]
    assert index.corpus_sha256 == corpus.sha256
    index.check(ElasticModel.from_pretrained(tiny_artifact))
    assert (result["count"], result["dim"]) == (10, 32)


def test_an_existing_output_needs_overwrite(tiny_bert, tmp_path):
    command = ["--model", str(tiny_bert), "--data", f"beir:{write_beir(tmp_path / 'set')}"]
    command += ["--output", str(tmp_path / "index")]
    main(command)
    with pytest.raises(InputError, match="exists already"):
        main(command)
    main([*command, "--overwrite"])


def test_bad_data_leaves_nothing_behind(tiny_bert, tmp_path):
    folder = write_beir(tmp_path / "set")
    for line, message in (('{"_id": "p1"}', "line 1"), ('{"_id": "p1", "text": ""}', "every passage is empty")):
        (folder / "corpus.jsonl").write_text(line + "\n")
        with pytest.raises(InputError, match=message):
            main(["--model", str(tiny_bert), "--data", f"beir:{folder}", "--output", str(tmp_path / "out" / "index")])
        assert not (tmp_path / "out").exists()
