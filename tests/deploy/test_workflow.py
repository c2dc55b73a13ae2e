"""The workflow of GitHub Actions runs .ci/run."""

import os
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_the_workflow_runs_what_ci_runs():
    workflow = yaml.load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"), yaml.BaseLoader)  # `on` stays a word
    assert set(workflow["on"]) == {"push", "pull_request"}
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] == "true"
    (job,) = workflow["jobs"].values()
    assert job["timeout-minutes"] == "90"
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci/run", os.X_OK)
    actions = [step["uses"] for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", action) for action in actions), actions
    (python,) = [step["with"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    assert (python["python-version"], python["cache"]) == ("3.11", "pip")
    assert all((ROOT / file).is_file() for file in python["cache-dependency-path"].split())
