"""Archives of revision b957249 (format 1) open and answer as they did; and an archive serves from its own code."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from archives import archive, index_of, servable

from elasticlm.handlers.torchserve_settings import read_handler_section
from elasticlm.schedule.load import Load
from elasticlm.serving.bundle import unpack
from elasticlm.serving.requests import Search
from elasticlm.serving.two_stage import open_archive

OLD = Path(__file__).parents[1] / "data" / "format1"
FACTS = json.loads((OLD / "facts.json").read_text("utf-8"))
CASES = [(name, policy) for name, policies in FACTS["hits"].items() for policy in policies]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    return {name: unpack(OLD / f"{name}.mar", tmp_path_factory.mktemp(name) / "unpacked") for name in FACTS["hits"]}


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_an_old_archive_finds_the_same_hits_with_the_same_scores(bundles, name, policy):
    bundle = bundles[name]
    _, config = bundle.read_settings()
    answerer = open_archive(bundle.folder, read_handler_section(config["handler"] | {"policy": policy})[0])
    hits = answerer.answer([Search(FACTS["query"], 3)], Load())[0].body["hits"]
    expected = FACTS["hits"][name][policy]
    assert [hit["id"] for hit in hits] == [hit["id"] for hit in expected]
    assert [hit["score"] for hit in hits] == pytest.approx([hit["score"] for hit in expected], abs=1e-5)


def test_the_levels_of_an_old_archive_are_read(bundles):
    assert bundles["embed"].read_levels() == (100, 50, 10)
    assert [str(level) for level in bundles["search"].read_levels()] == ["100+100", "50+10", "10"]


def test_an_archive_answers_with_the_code_inside_it_alone(tiny_artifact, tiny_bert, tmp_path):
    artifact = servable(tiny_artifact, tmp_path / "artifact", {100: 3.0, 50: 2.0, 10: 1.0})
    packed = archive("mini", artifact, tmp_path, index=index_of(tiny_bert), management_url="")
    with zipfile.ZipFile(packed) as files:
        files.extractall(tmp_path / "served")
    code = f"""
import runpy, sys
sys.path.insert(0, {str(tmp_path / "served")!r})
import elastic_handler
from elasticlm.serving.backlog import Backlog
from elasticlm.serving.core import ServingCore
from elasticlm.serving.settings import Settings
from elasticlm.serving.wire import RawRequest
from pathlib import Path
core = ServingCore.open(Path({str(tmp_path / "served")!r}), Settings(policy="fixed:50"))
print(core.handle([RawRequest(b'{{"query": "ice", "k": 2}}')], Backlog(), 0.0)[0][0].headers["X-Elastic-Level"])
for name, module in sorted(sys.modules.items()):
    if name.partition(".")[0] in ("elasticlm", "elastic_handler"):
        print(name, module.__file__)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    level, *loaded = run.stdout.splitlines()
    assert level == "50"
    assert len(loaded) > 20
    assert [line for line in loaded if not line.split(" ", 1)[1].startswith(str(tmp_path / "served"))] == []
