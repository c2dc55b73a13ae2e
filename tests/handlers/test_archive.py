"""The archive command: what it packs, what it fills in, and what it refuses."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from archives import PASSAGES, index_of, servable

from elasticlm.backend.onnx_export import ensure_exported
from elasticlm.errors import InputError
from elasticlm.handlers.archive import main
from elasticlm.handlers.packing import TEMPLATE, fill, round_up
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.retrieval.index_folder import shard_name, write_shard_counts
from elasticlm.retrieval.passage_index import PassageIndex
from elasticlm.schedule.latency import LatencyTable, Setup
from elasticlm.serving.bundle import stage
from elasticlm.serving.engine import load_index

MEANS_MS = {100: 40.0, 50: 20.0, 10: 5.0}


@pytest.fixture(scope="module")
def artifact(tiny_artifact, tmp_path_factory):
    return servable(tiny_artifact, tmp_path_factory.mktemp("servable") / "tiny", MEANS_MS)


def pack(artifact, folder, *options):
    main(["--model", str(artifact), "--name", "mini", "--output", str(folder), *options])
    return zipfile.ZipFile(folder / "mini.mar")


def settings_of(archive):
    return yaml.safe_load(archive.read("model-config.yaml"))


def test_the_archive_holds_all_that_serving_needs_and_nothing_else(artifact, tiny_bert, tmp_path, capsys):
    (artifact / ".ipynb_checkpoints").mkdir(exist_ok=True)
    (artifact / ".ipynb_checkpoints" / "notes").touch()
    index_of(tiny_bert).save(tmp_path / "index")
    archive = pack(artifact, tmp_path / "store", "--index", str(tmp_path / "index"))
    names = archive.namelist()
    roots = {name.split("/")[0] for name in names}
    assert roots == {"elastic_handler.py", "elasticlm", "artifact", "index", "model-config.yaml", "MAR-INF"}
    assert {"elasticlm/schedule/policies.py", "elasticlm/serving/engine.py", "elasticlm/handlers/probe.py"} <= set(
        names
    )
    assert {"artifact/model.safetensors", "artifact/latency.csv", "index/passages.faiss", "index/ids.txt"} <= set(names)
    code = [name for name in names if name.startswith(("elasticlm/", "handlers/"))]
    assert all(name.endswith(".py") for name in code)
    assert not [name for name in names if "/." in name or "__pycache__" in name]
    assert archive.read("index/ids.txt").decode().splitlines() == list(PASSAGES)
    assert json.loads(archive.read("MAR-INF/MANIFEST.json"))["model"]["handler"] == "elastic_handler.py"
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["archive"] == str(tmp_path / "store" / "mini.mar")
    assert (result["levels"], result["index"], result["latency_budget_ms"]) == ([100, 50, 10], 5, 200.0)


def test_without_a_policy_the_budget_is_five_service_times_of_the_largest_level(artifact, tmp_path, capsys):
    settings = settings_of(pack(artifact, tmp_path))
    handler = settings["handler"]
    assert (handler["policy"], handler["latency_budget_ms"], handler["alpha"]) == ("deadline", 200, 0.6)
    assert (settings["batchSize"], settings["minWorkers"], settings["maxBatchDelay"]) == (1, 1, 1)
    assert "latency budget: 200 ms, 5 times the 40 ms of level 100" in capsys.readouterr().err


def test_a_rerankers_budget_is_that_of_a_list_of_passages(tiny_artifact, tmp_path, capsys):
    ElasticModel.from_pretrained(tiny_artifact).with_head("score").save_pretrained(tmp_path / "headed")
    reranker = servable(tmp_path / "headed", tmp_path / "reranker", MEANS_MS)
    main(["--model", str(reranker), "--name", "rk", "--output", str(tmp_path)])
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1])["latency_budget_ms"] == 5 * 8 * 40
    assert "level 100 at 8 x 128 tokens" in said.err


def test_passages_are_embedded_only_by_archives_that_were_packed_for_it(artifact, tiny_artifact, tmp_path):
    own = servable(tiny_artifact, tmp_path / "own", MEANS_MS, passages="largest")
    packed = [settings_of(pack(own, tmp_path / name, *options))["handler"]["passages"]
              for name, options in (("plain", []), ("opened", ["--passages", "largest"]))]  # fmt: skip
    assert packed == ["refuse", "largest"]
    with pytest.raises(InputError, match="are encoded by its teacher"):
        pack(artifact, tmp_path / "never", "--passages", "largest")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("slack:t=300,alpha=.5", {"policy": "slack", "latency_budget_ms": 300, "alpha": 0.5}),
        ("slack:alpha=.5", {"policy": "slack", "latency_budget_ms": 1600, "alpha": 0.5}),  # 5 x 40 ms x a batch of 8
        ("queue:t=300", {"policy": "queue", "latency_budget_ms": 300, "alpha": 0.6}),
        ("fixed:50", {"policy": "fixed:50", "latency_budget_ms": 1600, "alpha": 0.6}),
    ],
)
def test_a_policy_becomes_the_settings(artifact, tmp_path, policy, expected):
    options = ["--policy", policy, "--batch-size", "8", "--workers", "2", "--max-batch-delay-ms", "5"]
    settings = settings_of(pack(artifact, tmp_path, *options))
    assert {name: settings["handler"][name] for name in expected} == expected
    assert (settings["batchSize"], settings["minWorkers"], settings["maxWorkers"]) == (8, 2, 2)
    assert settings["maxBatchDelay"] == 5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--policy", "fixed:40"], "level 40 is not among the levels 100, 50, 10"),
        (["--policy", "slak"], "did you mean 'slack'?"),
        (["--policy", "slack:t=0"], "--policy"),
        (["--name", "a/b"], "--name"),
        (["--index", "nowhere"], "nowhere"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_options_that_cannot_be_served_are_refused_and_leave_nothing(artifact, tmp_path, options, says):
    base = {"--model": str(artifact), "--name": "mini", "--output": str(tmp_path)}
    given = base | dict(zip(options[::2], options[1::2], strict=True))
    with pytest.raises(InputError) as error:
        main([part for pair in given.items() for part in pair])
    assert says in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_without_a_table_or_with_a_table_short_of_a_level_is_refused(artifact, tmp_path):
    without, short = tmp_path / "without", tmp_path / "short"
    for folder in (without, short):
        shutil.copytree(artifact, folder)
    (without / "latency.csv").unlink()
    lines = (short / "latency.csv").read_text().splitlines(keepends=True)
    (short / "latency.csv").write_text("".join(line for line in lines if not line.startswith("10,")))
    with pytest.raises(InputError, match="elasticlm profile --model"):
        pack(without, tmp_path / "store")
    with pytest.raises(InputError, match="no row for level 10"):
        pack(short, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_an_index_in_shards_is_packed_in_shards_and_served_like_one(artifact, tiny_bert, tmp_path):
    index = index_of(tiny_bert)
    for number, rows in enumerate((slice(0, 2), slice(2, 5))):
        PassageIndex.build(index.vectors()[rows], index.ids[rows], fingerprint=index.fingerprint,
                           corpus_sha256=None).save(tmp_path / "index" / shard_name(number))  # fmt: skip
    write_shard_counts(tmp_path / "index", [2, 3], index.dim, index.fingerprint, None)
    archive = pack(artifact, tmp_path / "store", "--index", str(tmp_path / "index"))
    assert {"index/index.json", "index/shard-00001/passages.faiss"} <= set(archive.namelist())
    archive.extractall(tmp_path / "served")
    served = load_index(tmp_path / "served/index", ElasticModel.from_pretrained(artifact), threads=1)
    assert served.ids == list(PASSAGES)
    assert served.search(index.vectors()[:3], 4)[1] == index.search(index.vectors()[:3], 4)[1]


def test_an_index_of_another_model_is_refused(artifact, tiny_bert, tmp_path):
    index = index_of(tiny_bert)
    index.fingerprint = "0" * 64
    index.save(tmp_path / "index")
    with pytest.raises(InputError, match="encoded by another model"):
        pack(artifact, tmp_path / "store", "--index", str(tmp_path / "index"))


def test_an_index_made_elsewhere_is_compared_with_its_corpus_first(artifact, tiny_bert, tmp_path):
    import faiss

    corpus = tmp_path / "corpus"
    corpus.mkdir()
    lines = [json.dumps({"_id": pid, "title": "", "text": text}) for pid, text in PASSAGES.items()]
    (corpus / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    index = index_of(tiny_bert)
    faiss.write_index(index.faiss, str(tmp_path / "theirs.faiss"))
    (tmp_path / "ids.txt").write_text("".join(f"{pid}\n" for pid in index.ids))
    given = ["--index", str(tmp_path / "theirs.faiss"), "--ids", str(tmp_path / "ids.txt")]
    with pytest.raises(InputError, match="--data SPEC"):
        pack(artifact, tmp_path / "store", *given)
    given += ["--data", f"beir:{corpus}"]
    archive = pack(artifact, tmp_path / "store", *given)
    assert json.loads(archive.read("index/index.json"))["fingerprint"] == index.fingerprint
    (tmp_path / "ids.txt").write_text("".join(f"{pid}\n" for pid in reversed(index.ids)))
    with pytest.raises(InputError, match="mean cosine"):
        pack(artifact, tmp_path / "store", *given, "--overwrite")


def test_an_archive_is_replaced_only_on_request(artifact, tmp_path):
    pack(artifact, tmp_path)
    with pytest.raises(InputError, match="--overwrite"):
        pack(artifact, tmp_path)
    pack(artifact, tmp_path, "--overwrite")
    assert {file.name for file in tmp_path.iterdir()} == {"mini.mar", "config.properties"}


def test_the_command_ends_with_two_and_one_line_on_bad_input(tmp_path):
    command = [sys.executable, "-m", "elasticlm.handlers.archive", "--model", str(tmp_path / "none"), "--name", "mini"]
    checkout = Path(__file__).parents[2]
    done = subprocess.run([*command, "--output", str(tmp_path)], capture_output=True, text=True, cwd=checkout)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_filling_keeps_the_templates_comments():
    filled = fill(TEMPLATE.read_text(), {"latency_budget_ms": 12.5, "policy": "fixed:50", "minWorkers": 3})
    assert "latency_budget_ms: 12.5 " in filled
    assert filled.count("#") == TEMPLATE.read_text().count("#")
    assert yaml.safe_load(filled)["handler"]["policy"] == "fixed:50"


@pytest.mark.parametrize(
    ("ms", "rounded"), [(200, 200), (200.1, 210), (51.3, 52), (3.21, 3.3), (0.52, 0.6), (1234, 1300)]
)
def test_budgets_are_round(ms, rounded):
    assert round_up(ms) == pytest.approx(rounded)


def test_the_fastest_setup_that_was_measured_is_served_with_its_graphs_alone(tiny_artifact, tmp_path):
    artifact = servable(tiny_artifact, tmp_path / "model", MEANS_MS)
    faster = LatencyTable.from_means({100: 20.0, 50: 10.0, 10: 2.0})
    LatencyTable(faster.cells, Setup(backend="onnx")).write(artifact / "latency.csv")
    archive = pack(artifact, tmp_path / "auto")
    handler = settings_of(archive)["handler"]
    assert (handler["backend"], handler["precision"], handler["latency_budget_ms"]) == ("onnx", "fp32", 100)
    assert "artifact/onnx/fp32/50.onnx" in archive.namelist()
    torch = pack(artifact, tmp_path / "torch", "--backend", "torch")
    assert settings_of(torch)["handler"]["backend"] == "torch"
    assert not [name for name in torch.namelist() if "/onnx/" in name.removeprefix("elasticlm")]
    with pytest.raises(InputError, match="nothing was measured for int8"):
        pack(artifact, tmp_path / "int8", "--precision", "int8")


def test_only_what_is_served_is_packed(artifact, tmp_path):
    artifact = shutil.copytree(artifact, tmp_path / "artifact")
    for name in ("training.json", "loss.png", ".secret", "tokenizer_backup_of_home.tar"):
        (artifact / name).write_text("private")
    packed = [name for name in pack(artifact, tmp_path).namelist() if name.startswith("artifact/")]
    assert {"artifact/config.json", "artifact/model.safetensors", "artifact/tokenizer.json"} <= set(packed)
    assert not {
        "artifact/training.json",
        "artifact/loss.png",
        "artifact/.secret",
        "artifact/tokenizer_backup_of_home.tar",
    } & set(packed)


@pytest.mark.parametrize("name", ["latency.csv", "tokenizer.json", "onnx/fp32/50.onnx", "onnx/fp32", "vocab.txt"])
def test_a_symbolic_link_is_refused(artifact, tmp_path, name):
    artifact, private = shutil.copytree(artifact, tmp_path / "artifact"), tmp_path / "private"
    link = artifact / name
    if "onnx" in name:
        ensure_exported(ElasticModel.from_pretrained(artifact), artifact, "fp32")
    if link.exists():
        link.rename(private)
    else:
        private.write_text("private")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(private)
    with pytest.raises(InputError, match="a symbolic link"):
        stage(tmp_path / "staged", artifact, adapter=TEMPLATE.parent)
    if "onnx" not in name:  # this artifact is served by PyTorch
        with pytest.raises(InputError, match="a symbolic link"):
            pack(artifact, tmp_path)
        assert not list(tmp_path.glob("*.mar"))


@pytest.mark.parametrize(("budget_ms", "texts", "timeout_s"), [(200, 39, 30), (4000, 799, 80), (6, 1, 30)])
def test_limits_and_timeout_follow_from_the_budget(artifact, tmp_path, budget_ms, texts, timeout_s):
    settings = settings_of(pack(artifact, tmp_path, "--policy", f"deadline:t={budget_ms}"))
    assert (settings["handler"]["max_texts"], settings["responseTimeout"]) == (texts, timeout_s)
    assert settings["handler"]["max_body_bytes"] == max(262144, texts * 64 * 8)


def test_the_queue_holds_what_the_smallest_level_can_answer_in_time(artifact, tmp_path):
    settings = settings_of(pack(artifact, tmp_path, "--policy", "slack:t=200", "--workers", "2"))
    turnaround_ms = 3.0
    assert settings["jobQueueSize"] == int(0.9 * 2 * (200 - 5.0 - 5.0) / (5.0 + turnaround_ms))
