"""mypy sees the four packages as one tree: a wrong call from any of them into the library is reported."""

import os
import subprocess
import sys

import pytest
from test_layout import ROOT

sys.path.insert(0, str(ROOT))
from typing_tree import MAPPED, make_tree

WRONG = """
from elasticlm.schedule.latency import LatencyTable

def wrong() -> str:
    return LatencyTable.from_means({50: 40.0}).mean_ms(50, rows="eight")
"""


@pytest.mark.slow
def test_a_wrong_call_across_packages_is_reported(tmp_path):
    tree = make_tree(tmp_path)
    for package in MAPPED:
        (tree / package / "deliberately_wrong.py").write_text(WRONG)
    names = [f"elasticlm.{package}.deliberately_wrong" for package in MAPPED]
    options = ["--config-file", str(ROOT / "setup.cfg"), "--cache-dir", str(ROOT / ".mypy_cache"), "-p"]
    command = [sys.executable, "-m", "mypy", *options, names[0], "-p", names[1], "-p", names[2]]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"MYPYPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    for package in MAPPED:
        errors = [line for line in done.stdout.splitlines() if f"{package}/deliberately_wrong.py" in line]
        assert any('incompatible type "str"; expected "float"' in line for line in errors), done.stdout
        assert any('got "float", expected "str"' in line for line in errors), done.stdout
