"""An output has one writer at a time; the next run clears away what a killed one left."""

import errno
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest

import elasticlm.__main__
from elasticlm import files
from elasticlm.errors import InputError
from elasticlm.files import claim, lock, new_file, new_folder, remove_folder
from elasticlm.model.folder import LATENCY_FILE
from elasticlm.schedule.latency import LatencyTable, Setup, read_tables
from elasticlm.trainer import distil, export, index, prune
from elasticlm.trainer.evaluate import main as evaluate

HOLD = """
import sys
from elasticlm.files import claim
with claim(*sys.argv[1:], overwrite=True):
    print("held", flush=True)
    sys.stdin.read()
"""

WRITE_TABLES = """
import sys
from elasticlm.schedule.latency import LatencyTable, Setup
cells = LatencyTable.from_means({50: 1.0}).cells
for threads in range(int(sys.argv[2]), int(sys.argv[2]) + 20):
    LatencyTable(cells, Setup(threads=threads)).write(sys.argv[1])
"""


@pytest.fixture
def hold():
    """Start processes that hold outputs until they are killed."""
    started = []

    def start(*paths):
        process = subprocess.Popen([sys.executable, "-c", HOLD, *map(str, paths)], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, text=True)  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_run_is_refused_and_told_by_whom(hold, tmp_path):
    process = hold(tmp_path / "out")
    refusal = rf"out: another run is writing it \(process {process.pid} on .+\)"
    for attempt in (
        lambda: claim(tmp_path / "out", overwrite=True),
        lambda: new_folder(tmp_path / "out", overwrite=True),
    ):
        with pytest.raises(InputError, match=refusal), attempt():
            pass
    with pytest.raises(InputError, match=refusal):
        remove_folder(tmp_path / "out")
    with claim(tmp_path / "other", overwrite=False):
        pass


def test_a_killed_run_holds_nothing(hold, tmp_path):
    process = hold(tmp_path / "out")
    process.kill()
    process.wait()
    assert [file.name for file in tmp_path.iterdir()] == [".out.lock"]
    with new_folder(tmp_path / "out"):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (prune.main, ["--teacher", "{teacher}", "--data", "beir:{data}"]),
        (distil.main, ["--model", "{model}", "--teacher", "{teacher}", "--data", "beir:{data}"]),
        (index.main, ["--model", "{model}", "--data", "beir:{data}"]),
        (export.main, ["--model", "{model}", "--level", "50"]),
        (evaluate, ["--model", "{model}", "--data", "beir:{data}"]),
    ],
)
def test_commands_are_refused_before_they_work(hold, tmp_path, tiny_bert, tiny_artifact, tiny_beir, command, options):
    hold(tmp_path / "out")
    names = {"teacher": tiny_bert, "model": tiny_artifact, "data": tiny_beir}
    with pytest.raises(InputError, match="out: another run is writing it"):
        command([option.format(**names) for option in options] + ["--output", str(tmp_path / "out"), "--overwrite"])


def test_every_command_with_an_output_claims_it():
    for name, module in elasticlm.__main__.MODULES.items():
        source = files.Path(find_spec(module).origin).read_text()
        if '"--output"' in source or "add_options(" in source or name == "demo":
            assert re.search(r"with claim\(", source), name


def test_blocks_of_one_process_may_be_nested_and_leave_nothing(tmp_path):
    output = tmp_path / "new" / "out"
    with claim(output, output, overwrite=False), lock(output):
        with new_file(output) as file:
            file.write_text("a")
        with new_file(output) as file:
            file.write_text("b")
    assert [file.name for file in output.parent.iterdir()] == ["out"]
    with pytest.raises(InputError, match="exists already"), claim(output, overwrite=False):
        pass


def test_folders_made_for_a_lock_are_removed_with_it(tmp_path):
    with lock(tmp_path / "a" / "b" / "out"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_link_and_its_target_are_one_output(hold, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    hold(tmp_path / "target")
    with pytest.raises(InputError, match="another run"), claim(tmp_path / "link", overwrite=True):
        pass


def test_short_work_waits_for_its_turn(hold, tmp_path, caplog):
    process = hold(tmp_path / "out")
    with ThreadPoolExecutor(1) as pool:

        def write():
            with new_file(tmp_path / "out") as file:
                file.write_text("a")

        waiting = pool.submit(write)
        while f"waiting for the run that is writing it (process {process.pid} on" not in caplog.text:
            assert not waiting.done()
            time.sleep(0.01)
        process.kill()
        waiting.result()
    assert (tmp_path / "out").read_text() == "a"


def test_what_a_killed_run_left_is_removed_by_the_next_one_on_the_same_output(tmp_path):
    (tmp_path / ".out.12345678.tmp").mkdir()
    (tmp_path / ".out.12345678.tmp" / "a").write_text("half")
    (tmp_path / ".out.abcdefab.tmp").write_text("half")
    (tmp_path / "..out.abcdefab.tmp.12345678.tmp").mkdir()  # by what wrote into the folder
    (tmp_path / "..out.abcdefab.tmp.lock").write_text("")
    (tmp_path / ".other.12345678.tmp").write_text("half")
    with new_folder(tmp_path / "out"):
        pass
    assert {file.name for file in tmp_path.iterdir()} == {"out", ".other.12345678.tmp"}


@pytest.mark.parametrize("killed_before", ["the new one gets its name", "the old one is deleted"])
def test_an_output_that_was_being_replaced_is_never_lost(tmp_path, monkeypatch, killed_before):
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("old")

    class Killed(BaseException):
        pass

    def killed(*args):
        raise Killed

    monkeypatch.setattr(files, "_remove", killed)
    if killed_before == "the new one gets its name":
        rename = files.Path.rename
        monkeypatch.setattr(files.Path, "rename", lambda a, b: killed() if b.name == "out" else rename(a, b))
    with pytest.raises(Killed), new_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "a").write_text("new")
    monkeypatch.undo()
    with claim(tmp_path / "out", overwrite=True):
        pass
    expected = "old" if killed_before == "the new one gets its name" else "new"
    assert (tmp_path / "out" / "a").read_text() == expected
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_two_profiles_at_once_lose_no_rows(tmp_path):
    file = tmp_path / LATENCY_FILE
    runs = [subprocess.Popen([sys.executable, "-c", WRITE_TABLES, str(file), first], stderr=subprocess.DEVNULL)
            for first in ("1", "21")]  # fmt: skip
    assert [run.wait() for run in runs] == [0, 0]
    assert {table.setup.threads for table in read_tables(file)} == set(range(1, 41))
    assert LatencyTable.read(file, threads=7).setup == Setup(threads=7)


def test_a_filesystem_without_locks_gets_a_warning(tmp_path, monkeypatch, caplog):
    def unsupported(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "lockf", unsupported)
    (tmp_path / ".out.12345678.tmp").mkdir()
    with new_folder(tmp_path / "out"):
        pass
    assert "no locks on this filesystem" in caplog.text
    assert {file.name for file in tmp_path.iterdir()} == {"out", ".out.12345678.tmp"}  # it may be another run's


def test_only_the_first_process_of_torchrun_claims(hold, tmp_path, monkeypatch):
    hold(tmp_path / "out")
    monkeypatch.setenv("RANK", "1")
    with claim(tmp_path / "out", overwrite=False):
        pass


def test_commands_that_share_no_work_are_refused_under_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="evaluate runs in one process, not 2: start it without torchrun"):
        elasticlm.__main__.main(["evaluate", "--help"])
    with pytest.raises(SystemExit) as ended:
        elasticlm.__main__.main(["index", "--help"])
    assert ended.value.code == 0
