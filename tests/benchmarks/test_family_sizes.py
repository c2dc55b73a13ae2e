"""elasticlm families, on models that are tiny."""

import csv
import json

from families import SIZES

from elasticlm.benchmarks import family_sizes

TINY = SIZES | {"vocab_size": 50, "max_position_embeddings": 40}


def test_every_level_is_timed_and_its_weights_counted(tmp_path, monkeypatch, capsys):
    special = {f"{part}_token_id": 1 for part in ("pad", "cls", "sep", "bos", "eos")}
    monkeypatch.setattr(family_sizes, "BASE", {"bert": TINY, "modernbert": TINY | special})
    family_sizes.main(["--families", "bert,modernbert", "--levels", "100,50", "--shapes", "1x4,2x8", "--seconds", "0",
                       "--output", str(tmp_path / "out")])  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "out/families.csv").open()))
    assert [(row["family"], row["level"]) for row in rows] == [
        ("bert", "100"), ("bert", "50"), ("modernbert", "100"), ("modernbert", "50")
    ]  # fmt: skip
    assert all(float(row[f"{shape} {engine}"]) > 0 for row in rows for shape in ("1x4", "2x8")
               for engine in ("torch fp32", "onnx fp32", "onnx int8"))  # fmt: skip
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"][0]["family"] == "bert"
    assert (tmp_path / "out/families.md").read_text().startswith("| family | level |")
