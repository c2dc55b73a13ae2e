"""ONNX graphs are those of the export, or they are not run."""

import json
import shutil
from pathlib import Path

import pytest

from elasticlm.backend import graph_hashes, onnx_export
from elasticlm.backend.graph_hashes import graphs_folder, listed
from elasticlm.backend.onnx_export import ensure_exported, export
from elasticlm.backend.onnx_runtime import is_exported
from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.serving import bundle

HANDLERS = Path(__file__).parents[2] / "handlers"
TEXTS = ["how does ice form", "the sun and the moon and the sea"]


@pytest.fixture
def exported(tiny_artifact, tmp_path):
    """A copy of the tiny artifact with graphs in fp32."""
    folder = shutil.copytree(tiny_artifact, tmp_path / "exported")
    export(ElasticModel.from_pretrained(folder), folder, "fp32", TEXTS)
    return folder


def write_other_graph(folder):
    (folder / "50.onnx").write_bytes((folder / "100.onnx").read_bytes())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (write_other_graph, r"50\.onnx: .* differs"),
        (lambda folder: (folder / "50.onnx").unlink(), r"50\.onnx: missing"),
        (lambda folder: (folder / "export.json").write_text("{}"), r"export\.json: .* differs"),
        (lambda folder: (folder / "weights.bin").write_bytes(b"a"), r"weights\.bin: not listed in config\.json"),
    ],
)
def test_graphs_other_than_the_exported_ones_are_refused_and_not_packed(exported, tmp_path, change, message):
    assert set(listed(exported, "fp32")) == {"100.onnx", "50.onnx", "10.onnx", "export.json"}
    ElasticModel.from_pretrained(exported, backend="onnx")
    change(graphs_folder(exported, "fp32"))
    with pytest.raises(InputError, match=message + r".*; make them with `elasticlm export"):
        ElasticModel.from_pretrained(exported, backend="onnx")
    with pytest.raises(InputError, match=message):
        bundle.stage(tmp_path / "staged", exported, adapter=HANDLERS)
    ensure_exported(ElasticModel.from_pretrained(exported), exported, "fp32")
    ElasticModel.from_pretrained(exported, backend="onnx")


def test_graphs_that_somebody_put_into_an_artifact_are_no_graphs(exported, tmp_path):
    ElasticModel.from_pretrained(exported).save_pretrained(tmp_path / "without")
    shutil.copytree(exported / "onnx", tmp_path / "without" / "onnx")
    assert is_exported(exported, "fp32")
    assert not is_exported(tmp_path / "without", "fp32")
    with pytest.raises(InputError, match=r"not listed in config\.json"):
        ElasticModel.from_pretrained(tmp_path / "without", backend="onnx")
    bundle.stage(tmp_path / "staged", tmp_path / "without", adapter=HANDLERS)
    assert not (tmp_path / "staged/artifact/onnx").exists()


def test_graphs_from_before_hashes_run_with_one_warning_and_are_listed_by_the_next_export(
    exported, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(onnx_export, "LEAST_COSINE", 0.5)  # a tiny random model is no match for eight bits
    config = json.loads((exported / "config.json").read_text())
    del config["graphs"]
    (exported / "config.json").write_text(json.dumps(config))
    assert is_exported(exported, "fp32")
    for _ in range(2):
        ElasticModel.from_pretrained(exported, backend="onnx")
    assert caplog.text.count("not checked; export them anew") == 1
    bundle.stage(tmp_path / "staged", exported, adapter=HANDLERS)
    assert (tmp_path / "staged/artifact/onnx/fp32/50.onnx").is_file()
    export(ElasticModel.from_pretrained(exported), exported, "int8", TEXTS)
    assert "50.onnx" in listed(exported, "fp32")
    assert "50.onnx" in listed(exported, "int8")


@pytest.mark.parametrize("broken", ["sha256_file", "new_folder"])
def test_an_export_that_fails_leaves_the_graphs_that_were_there(exported, monkeypatch, broken):
    def fail(*args, **kwargs):
        raise OSError("broken")

    monkeypatch.setattr(graph_hashes, broken, fail)
    with pytest.raises(OSError, match="broken"):
        export(ElasticModel.from_pretrained(exported), exported, "fp32", TEXTS)
    monkeypatch.undo()
    ElasticModel.from_pretrained(exported, backend="onnx")


def test_an_export_that_ends_while_it_replaces_graphs_leaves_none(exported, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(artifact, precision, hashes, listing=graph_hashes._list):
        listing(artifact, precision, hashes)
        if not hashes:
            monkeypatch.setattr(graph_hashes, "_list", lambda *args: None)  # nothing more is done
            raise Killed

    monkeypatch.setattr(graph_hashes, "_list", killed)
    with pytest.raises(Killed):
        export(ElasticModel.from_pretrained(exported), exported, "fp32", TEXTS)
    monkeypatch.undo()
    assert not is_exported(exported, "fp32")
    ensure_exported(ElasticModel.from_pretrained(exported), exported, "fp32")
    assert is_exported(exported, "fp32")
