"""An index written in shards by workers: equal to one that is encoded here; finished shards are kept.

What Ray has no part in runs without it: the shards are written in this process, one after another.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
from random_texts import WORDS
from sets import write_jsonl, write_tsv

from elasticlm.errors import InputError
from elasticlm.retrieval.passage_index import PassageIndex
from elasticlm.trainer import index, ray_workers, sharded_index, stored_vectors
from elasticlm.trainer.evaluate import main as evaluate

PASSAGES, SHARD, EMPTY = 250, 50, (7, 149)  # of a corpus, at most of a shard, rows of the empty passages
COUNTS = [49, 50, 49, 50, 50]  # of the 248 passages that are not empty


class StoppedError(Exception):
    """Stands for a kill between two shards."""


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_vectors, "BLOCK", 32)
        yield


def write_set(folder, passages=PASSAGES, seed=0):
    """Write a set of passages of 4 to 12 words, two of them empty, and 10 queries; return its spec."""
    random = np.random.default_rng(seed)
    texts = [" ".join(random.choice(WORDS.split(), random.integers(4, 13))) for _ in range(passages)]
    folder.mkdir(parents=True)
    write_jsonl(folder / "corpus.jsonl", ({"_id": f"p{row}", "title": "", "text": "" if row in EMPTY else text}
                                          for row, text in enumerate(texts)))  # fmt: skip
    write_jsonl(folder / "queries.jsonl", ({"_id": f"q{row}", "text": texts[20 * row]} for row in range(10)))
    write_tsv(folder / "qrels" / "test.tsv", [(f"q{row}", f"p{20 * row}", 1) for row in range(10)])
    return f"beir:{folder}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("sharded") / "set")


@pytest.fixture(scope="module")
def local(data, tiny_bert, tmp_path_factory):
    """The folder of the index that is encoded in this process and not in shards."""
    folder = tmp_path_factory.mktemp("local") / "index"
    index.main(["--model", str(tiny_bert), "--data", data, "--output", str(folder)])
    return folder


@pytest.fixture
def written(monkeypatch):
    """Numbers of the shards that were written, here and not by Ray; ``written.stop_after(n)`` stops a run then."""

    class Written(list):
        limit = None

        def stop_after(self, shards):
            self.limit = shards

    class Counter:
        encoded = 0

        def update(self, n):
            self.encoded += n

    numbers = Written()

    def here(plan, missing, *, address, workers):
        writer = sharded_index.ShardWriter(plan)
        for shard in missing:
            if len(numbers) == numbers.limit:
                raise StoppedError
            counter = Counter()
            writer.write(shard, counter)
            assert counter.encoded == len(shard)
            numbers.append(shard.number)

    monkeypatch.setattr(ray_workers, "write_shards", here)
    return numbers


@pytest.fixture
def command(data, tiny_bert, tmp_path):
    """A function: runs the command with these options besides the usual ones, or instead of them."""
    usual = {"--model": str(tiny_bert), "--data": data, "--output": str(tmp_path / "index"), "--engine": "ray",
             "--shard-size": str(SHARD)}  # fmt: skip

    def run(*flags, **options):
        given = usual | {f"--{name.replace('_', '-')}": str(value) for name, value in options.items()}
        index.main([word for option in given.items() for word in option] + list(flags))
        return PassageIndex.load(given["--output"], memory_mapped=True)

    return run


def assert_equal(found, folder):
    """The same rows as the index of a folder, and the same hits."""
    expected = PassageIndex.load(folder)
    assert found.ids == expected.ids
    assert (found.fingerprint, found.corpus_sha256) == (expected.fingerprint, expected.corpus_sha256)
    max_diff = np.abs(found.vectors() - expected.vectors()).max()
    assert max_diff < 1e-6, max_diff
    for queries in (expected.vectors()[:1], expected.vectors()[:40]):
        (scores, hits), (expected_scores, expected_hits) = found.search(queries, 20), expected.search(queries, 20)
        max_diff = np.abs(scores - expected_scores).max()
        assert max_diff < 1e-6, max_diff
        assert hits == expected_hits


def files_of(folder):
    """Number and time of the last change of the files in which the vectors of each shard are."""
    files = sorted(Path(folder).rglob("shard-*/passages.faiss"))
    return {file.parent.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def test_an_index_in_shards_equals_one_encoded_here(command, written, local, tmp_path, capsys):
    found = command()
    assert_equal(found, local)
    assert json.loads((tmp_path / "index/index.json").read_text())["shards"] == COUNTS
    assert {path.name for path in (tmp_path / "index").iterdir()} == {"index.json", *files_of(tmp_path / "index")}
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["count"], result["fingerprint"]) == (248, found.fingerprint)


def test_an_interrupted_run_continues_with_the_shards_that_are_missing(command, written, local, tmp_path, capsys):
    written.stop_after(2)
    with pytest.raises(StoppedError):
        command()
    assert not (tmp_path / "index").exists()
    before = files_of(tmp_path)
    written.stop_after(None)
    found = command()
    assert written == [0, 1, 2, 3, 4]
    assert "passages: 2 of 5 shards have been written before" in capsys.readouterr().err
    assert before.items() <= files_of(tmp_path / "index").items()
    assert_equal(found, local)


@pytest.mark.parametrize("other", ["model", "data", "shard_size", "kind", "seed"])
def test_shards_of_another_model_corpus_or_option_are_not_used(
    command, written, local, tiny_artifact, tiny_bert, tmp_path, other
):
    if other == "model":
        value = tmp_path / "teacher"
        value.mkdir()
        for file in tiny_bert.iterdir():
            (value / file.name).symlink_to(file)
        (value / "sentence_bert_config.json").unlink()
        (value / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 6}))
    else:
        corpus = tmp_path / "other"
        value = {"data": lambda: write_set(corpus, seed=1), "shard_size": lambda: 70, "kind": lambda: "SQ8",
                 "seed": lambda: 1}[other]()  # fmt: skip
    written.stop_after(2)
    with pytest.raises(StoppedError):
        command(**{other: value})
    written.clear()
    written.stop_after(None)
    assert_equal(command(), local)
    assert written == [0, 1, 2, 3, 4]


def test_a_broken_shard_of_an_interrupted_run_is_written_again(command, written, local, tmp_path):
    written.stop_after(3)
    with pytest.raises(StoppedError):
        command()
    (cut_off,) = tmp_path.rglob("shard-00001/passages.faiss")
    cut_off.write_bytes(cut_off.read_bytes()[:-100])
    written.clear()
    written.stop_after(None)
    assert_equal(command(), local)
    assert written == [1, 3, 4]


def test_a_run_that_was_killed_before_the_last_rename_writes_no_shard(command, written, local, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sharded_index, "publish_folder", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            command()
    assert_equal(command(), local)
    assert written == [0, 1, 2, 3, 4]


def test_a_machine_with_another_model_or_corpus_is_refused(command, written, data, tmp_path, monkeypatch):
    write, folder = sharded_index.ShardWriter.write, Path(data.removeprefix("beir:"))

    def with_other(**attributes):
        def write_there(writer, shard, counter):
            for name, value in attributes.items():
                setattr(writer, name, value)
            write(writer, shard, counter)

        monkeypatch.setattr(sharded_index.ShardWriter, "write", write_there)

    with_other(corpus=sharded_index.load_corpus(write_set(tmp_path / "other", seed=1)).findable)
    with pytest.raises(InputError, match=f"{folder} has other passages there"):
        command()
    with_other()
    monkeypatch.setattr(sharded_index, "passage_encoder", lambda *_: OtherModel())
    with pytest.raises(InputError, match="is another model there"):
        command()


class OtherModel:
    def fingerprint(self):
        return "v2:0"


def test_each_shard_of_a_trained_kind_is_trained_by_itself(command, written, local):
    found = command(kind="IVF4,Flat")
    expected = PassageIndex.load(local)
    np.testing.assert_allclose(found.vectors(), expected.vectors(), atol=1e-6)
    assert [hits[0] for hits in found.search(expected.vectors()[:9], 1)[1]] == expected.ids[:9]


def test_a_kind_with_more_lists_than_passages_is_refused_before_anything_is_encoded(command, written):
    with pytest.raises(InputError, match=r"60 lists need.*smallest shard has 49: give a larger --shard-size"):
        command(kind="IVF60,Flat")
    assert not written


def test_an_existing_output_needs_overwrite(command, written, local):
    command()
    with pytest.raises(InputError, match="exists already"):
        command()
    assert_equal(command("--overwrite"), local)


def test_shards_are_evaluated_like_one_index(command, written, data, local, tiny_bert, tmp_path):
    command()
    for name, folder in (("shards", tmp_path / "index"), ("one", local)):
        evaluate(["--model", str(tiny_bert), "--data", data, "--index", str(folder), "--output", str(tmp_path / name)])
    found, expected = (json.loads((tmp_path / name).read_text()) for name in ("shards", "one"))
    assert found["metrics"] == expected["metrics"]
    assert found["per_query"] == expected["per_query"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "local", "shard_size": 50}, "--shard-size is for --engine ray"),
        ({"engine": "local", "shard_size": 50, "workers": 2}, "--shard-size is for --engine ray"),
        ({"shard_size": 0}, "--shard-size: 0: expected a whole number of 1 or more"),
        ({"address": "ray://head:10001"}, "start the command on a machine of the cluster"),
    ],
)
def test_options_that_do_not_go_together_are_refused(command, written, options, message):
    with pytest.raises(InputError, match=message):
        command(**options)
    assert not written


def test_the_engine_needs_ray_and_no_torchrun(command, written, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(InputError, match="start it without torchrun"):
            command()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'elasticlm\[train,ray\]'"):
        command()


def test_bad_input_that_a_worker_meets_comes_back_as_a_row(command, monkeypatch):
    def here(plan, missing, *, address, workers):
        batch = {"number": np.array([0]), "rows": np.array([missing[0].rows]), "sha256": np.array(["other"])}
        (error,) = ray_workers.ShardActor(plan, None)(batch)["error"]
        raise InputError(error)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the actor sets it
    monkeypatch.setattr(ray_workers, "write_shards", here)
    with pytest.raises(InputError, match="has other passages there"):
        command()


def test_an_address_at_which_nothing_listens_is_refused(data, tiny_bert, tmp_path):
    options = ["--engine", "ray", "--address", "127.0.0.1:1", "--model", str(tiny_bert), "--data", data]
    with pytest.raises(InputError, match=r"--address 127\.0\.0\.1:1: no Ray cluster there"):
        index.main([*options, "--output", str(tmp_path / "index")])


def start(tmp_path, *options, **variables):
    """Start the command as a user does, with a home of its own."""
    environment = os.environ | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "RAY_ADDRESS": ""} | variables
    words = ["index", "--engine", "ray", *options]
    return subprocess.Popen([sys.executable, "-m", "elasticlm", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=environment, text=True)  # fmt: skip


def is_agent(process):
    try:
        return "Agent" in process.name()
    except psutil.NoSuchProcess:
        return False


def assert_gone(processes):
    """All processes of a Ray have ended, except two idle agents of a killed one, which end by themselves in a minute.

    Those end here.
    """
    agents = [process for process in processes if is_agent(process)]
    assert psutil.wait_procs([process for process in processes if process not in agents], timeout=30)[1] == []
    for agent in agents:
        agent.kill()


CLUSTER = """
import sys, tempfile
import ray
with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
    ray.init("local", num_cpus=2, include_dashboard=False, _temp_dir=folder)
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
    ray.shutdown()
"""


@pytest.fixture
def cluster(tmp_path):
    """A running Ray on the loopback interface: how it is reached."""
    variables = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
    process = subprocess.Popen([sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True, env=os.environ | {"HOME": str(tmp_path)} | variables)  # fmt: skip
    yield variables | {"RAY_ADDRESS": process.stdout.readline().strip()}
    assert process.poll() is None
    children = psutil.Process(process.pid).children(recursive=True)
    process.communicate()  # closes its standard input, which ends it
    assert_gone(children)


@pytest.fixture
def short_folder():
    """Where a killed Ray leaves its files; the paths of its sockets must be short."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.mark.slow
def test_a_killed_run_on_ray_leaves_no_process_and_is_continued_on_a_cluster(
    local, data, tiny_bert, tmp_path, short_folder, request
):
    options = ["--model", str(tiny_bert), "--data", data, "--shard-size", "25", "--output", str(tmp_path / "index")]
    killed = start(tmp_path, *options, "--workers", "1", TMPDIR=short_folder)
    while not files_of(tmp_path):
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.01)
    children = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.communicate()
    assert len(children) > 3
    assert_gone(children)
    before = files_of(tmp_path)
    assert 0 < len(before) < 10
    assert not (tmp_path / "index").exists()
    out, error = start(tmp_path, *options, **request.getfixturevalue("cluster")).communicate(timeout=300)
    assert f"passages: {len(before)} of 10 shards have been written before" in error
    assert "passages: 248/248" in error
    assert json.loads(out.splitlines()[-1])["count"] == 248
    after = files_of(tmp_path / "index")
    assert len(after) == 10
    assert before.items() <= after.items()
    assert_equal(PassageIndex.load(tmp_path / "index"), local)
