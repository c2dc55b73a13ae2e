"""The counts that workers share: slots are claimed, outlive their workers and are continued."""

import os
import signal
import subprocess
import sys

import pytest

from elasticlm.serving import shared_counts
from elasticlm.serving.shared_counts import OwnCount, SharedCounts, open_counts

WORKER = """
import sys
from elasticlm.serving.shared_counts import SharedCounts
from pathlib import Path
counts = SharedCounts(Path(sys.argv[1]))
for line in sys.stdin:
    print(counts.add(int(line)), flush=True)
"""


class Worker:
    """A process with a slot in the file."""

    def __init__(self, file):
        command = [sys.executable, "-c", WORKER, str(file)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def add(self, count):
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def test_the_sum_over_workers_never_falls_whoever_dies(tmp_path):
    file = tmp_path / "counts"
    first, second = Worker(file), Worker(file)
    assert [first.add(3), second.add(4), first.add(1)] == [3, 7, 8]
    first.kill()
    assert second.add(2) == 10
    third = Worker(file)  # takes the free slot and continues its count
    assert third.add(5) == 15
    assert second.add(0) == 15
    for worker in (second, third):
        worker.kill()
    assert SharedCounts(file).add(0) == 15


def test_workers_that_find_no_slot_say_so(tmp_path, monkeypatch):
    file = tmp_path / "counts"
    worker = Worker(file)
    worker.add(1)
    monkeypatch.setattr(shared_counts, "SLOTS", 1)
    with pytest.raises(OSError, match="all 1 slots are taken"):
        SharedCounts(file)
    worker.kill()


def test_the_folder_is_private_and_files_of_dead_servers_go(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_counts.tempfile, "gettempdir", lambda: str(tmp_path))
    counts = open_counts("mini", "1.0")
    assert isinstance(counts, SharedCounts)
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    (file,) = folder.iterdir()
    assert file.name.startswith(f"{os.getppid()}-")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    stale = folder / f"{ended.pid}-{'0' * 16}"
    stale.touch()
    open_counts("other", "1.0")
    assert not stale.exists()
    assert file.exists()


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shared_counts.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = tmp_path / f"elasticlm-counts-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    assert isinstance(open_counts("mini", "1.0"), OwnCount)
    assert "ages are unknown" in caplog.text


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").touch()
    (tmp_path / "counts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="counts"):
        SharedCounts(tmp_path / "counts")
