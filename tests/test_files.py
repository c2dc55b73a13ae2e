"""Outputs are written to disk before they get their name."""

import os

import pytest

from elasticlm import files
from elasticlm.files import new_file, new_folder


@pytest.fixture
def order(monkeypatch):
    """What happens to which path: "sync" of a file or folder, "rename"."""
    events, paths = [], {}
    real = {name: getattr(os, name) for name in ("open", "fsync", "rename", "replace")}

    def opened(path, *args, **kwargs):
        descriptor = real["open"](path, *args, **kwargs)
        paths[descriptor] = os.fspath(path)
        return descriptor

    def synced(descriptor):
        events.append(("sync", os.path.basename(paths[descriptor])))
        real["fsync"](descriptor)

    def renamed(name):
        def rename(source, target, *args, **kwargs):
            events.append(("rename", os.path.basename(target)))
            real[name](source, target, *args, **kwargs)

        return rename

    monkeypatch.setattr(files.os, "open", opened)
    monkeypatch.setattr(files.os, "fsync", synced)
    for name in ("rename", "replace"):
        monkeypatch.setattr(files.os, name, renamed(name))
    return events


def test_a_folder_is_on_disk_before_it_is_renamed_and_then_the_name_is(order, tmp_path):
    with new_folder(tmp_path / "output") as folder:
        (folder / "part").mkdir()
        (folder / "part" / "a").write_text("a")
    names = [name for event, name in order if event == "sync"]
    assert {"a", "part"} < set(names)
    place = order.index(("rename", "output"))
    assert order.index(("sync", "a")) < place
    assert order.index(("sync", tmp_path.name)) > place


def test_a_file_is_on_disk_before_it_replaces_another(order, tmp_path):
    with new_file(tmp_path / "output") as file:
        file.write_text("a")
    assert [event for event, _ in order] == ["sync", "rename", "sync"]
    assert (tmp_path / "output").read_text() == "a"


def test_what_fails_leaves_nothing(tmp_path):
    def fail():
        with new_folder(tmp_path / "output") as folder:
            (folder / "a").write_text("a")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert list(tmp_path.iterdir()) == []
