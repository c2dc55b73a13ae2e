"""Weights from packages: slices of a zip archive become a model's folder; other weights are not taken."""

import io
import zipfile

import pytest

from elasticlm.errors import InputError
from elasticlm.files import sha256_file
from elasticlm.model import packaged
from elasticlm.model.download import check_model_name, resolve_model
from elasticlm.model.packaged import Module, Slices
from elasticlm.model.teacher import load_model

NAME = "somebody/tiny"


@pytest.fixture
def slices(tiny_bert, tmp_path, monkeypatch):
    """Three installed distributions with the slices of the tiny BERT's archive; their model under the name NAME."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in sorted(tiny_bert.rglob("*")):
            archive.write(file, f"tiny/{file.relative_to(tiny_bert)}")
        archive.writestr("elsewhere/desktop.ini", "no part of the model")
    whole, site = buffer.getvalue(), tmp_path / "site"
    third = len(whole) // 3
    for part, start in enumerate((0, third, 2 * third), 1):
        own, info = f"tiny-part_00{part}/input/tiny.zip.00{part}", site / f"tiny_part_00{part}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / own).parent.mkdir(parents=True)
        (site / own).write_bytes(whole[start : start + third] if part < 3 else whole[start:])
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tiny-part-00{part}\nVersion: 1.0\n")
        (info / "RECORD").write_text(f"{own},,\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    source = Slices([f"tiny-part-00{i}" for i in (1, 2, 3)], "tiny", sha256_file(tiny_bert / "model.safetensors"))
    monkeypatch.setitem(packaged.PACKAGED, NAME, source)
    return site


def test_slices_are_joined_once_into_the_models_folder(slices, tiny_bert, capsys):
    check_model_name(NAME)
    folder = resolve_model(NAME)
    assert {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()} == {
        file.relative_to(tiny_bert): file.read_bytes() for file in tiny_bert.rglob("*") if file.is_file()
    }
    assert resolve_model(NAME) == folder
    assert capsys.readouterr().err.count("joining tiny") == 1
    assert load_model(NAME).config.pooling == "mean"


def test_damaged_slices_are_refused_by_name(slices):
    (slices / "tiny-part_003/input/tiny.zip.003").write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"tiny-part-001, .*: not the slices of a zip archive"):
        resolve_model(NAME)


def test_other_weights_are_not_taken(slices, monkeypatch):
    source = packaged.PACKAGED[NAME]
    monkeypatch.setitem(packaged.PACKAGED, NAME, Slices(source.packages, source.subfolder, "0" * 64))
    assert packaged.packaged_folder(NAME) is None


def test_what_is_not_installed_is_left_to_the_hub(monkeypatch):
    for source in (Slices(["no-such-part-001"], "tiny", ""), Module("no_such_package", "model", "")):
        monkeypatch.setitem(packaged.PACKAGED, NAME, source)
        assert not packaged.is_packaged(NAME)
        assert packaged.packaged_folder(NAME) is None
