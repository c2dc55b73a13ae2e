import pytest
from sets import write_beir


@pytest.fixture
def beir_folder(tmp_path):
    """A small readable set in BEIR's folder form, new for each test, which may break it."""
    return write_beir(tmp_path / "readable")
