"""elasticlm fuzz: every kind of request meets its outcome, and what goes wrong is found and reported."""

import json
import random

import pytest
from archives import archive, index_of, servable, with_head

from elasticlm.benchmarks import fuzz, hostile_texts
from elasticlm.benchmarks.fuzz_bodies import ANSWERED, KINDS, Case, Wire, made
from elasticlm.benchmarks.fuzz_run import Findings
from elasticlm.serving.requests import RequestError, Service, accept
from elasticlm.serving.settings import Settings

MEANS_MS = {100: 6.0, 50: 4.0, 10: 1.0}
TASKS = ("embed", "score", "classify")


@pytest.fixture(scope="module")
def archives(tiny_artifact, tiny_bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed")
    parts = {task: with_head(tiny_artifact, folder / f"{task}-part", MEANS_MS, task, labels)
             for task, labels in (("score", None), ("classify", ["yes", "no"]))}  # fmt: skip
    parts["embed"] = servable(tiny_artifact, folder / "embed-part", MEANS_MS)
    index = index_of(tiny_bert)
    return {task: archive(task, part, folder, index=index if task == "embed" else None, max_texts=9, max_passages=9)
            for task, part in parts.items()}  # fmt: skip


def fuzzed(made_archive, folder, capsys, *options):
    code = fuzz.main(["--archive", str(made_archive), "--output", str(folder / "out"), *map(str, options)])
    failures = [json.loads(line) for line in (folder / "out/failures.jsonl").read_text().splitlines()]
    return code, json.loads(capsys.readouterr().out.splitlines()[-1]), failures


@pytest.mark.parametrize("task", TASKS)
def test_hostile_requests_get_their_own_4xx_and_polite_ones_their_answers(archives, tmp_path, capsys, task):
    code, result, failures = fuzzed(archives[task], tmp_path, capsys, "--core", 2100, "--server", 0)
    assert (code, failures) == (0, [])
    assert (result["core"]["requests"], result["core"]["polite"]) == (2100, 300)
    assert result["core"]["codes"][ANSWERED] > 30
    assert {"bad_json", "wrong_type", "unknown_field", "bad_text", "duplicate_field"} <= set(result["core"]["codes"])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("task", [*TASKS, "search"])
def test_every_kind_of_request_has_the_outcome_that_it_claims(kind, task):
    settings = Settings(latency_budget_ms=250, max_texts=9, max_passages=9)
    service = Service(task, has_index=task in ("embed", "search"))
    wire = Wire(service, settings, random.Random(3))
    for _ in range(30):
        case = made(kind, wire)
        try:
            accept(case.body, {name.lower(): value for name, value in case.headers.items()}, None, settings, service)
        except RequestError as error:
            outcome = error.code
        else:
            outcome = ANSWERED
        assert outcome in case.allowed or not case.allowed, case


@pytest.mark.parametrize(
    ("case", "status", "body", "found"),
    [
        (Case("a", b"{", allowed=frozenset({"bad_json"})), 400, b'{"error":{"code":"bad_json"}}', 0),
        (Case("a", b"{", allowed=frozenset({"bad_json"})), 400, b'{"error":{"code":"no_body"}}', 1),
        (Case("a", b"{", allowed=frozenset({"bad_json"})), 500, b'{"error":{"code":"bad_json"}}', 1),
        (Case("a", b"{", allowed=frozenset({"bad_json"})), 200, b"{}", 1),
        (Case("a", b"{"), 200, b"{}", 0),
        (Case("a", b"{"), 413, b"", 0),
        (Case("a", b"{"), 503, b"", 1),
        (Case("a", b"{"), 0, b"ConnectionResetError", 1),
    ],
)
def test_another_outcome_is_a_failure(case, status, body, found):
    findings = Findings()
    findings.add(case, status, body)
    assert findings.failed == len(findings.failures) == found


def test_a_polite_answer_that_differs_is_a_failure():
    findings = Findings()
    alone = {"scores": [0.5, 0.25], "level": 10}
    findings.add_polite(200, b'{"scores": [0.500001, 0.25], "level": 10}', alone)
    assert findings.failed == 0
    findings.add_polite(200, b'{"scores": [0.5001, 0.25], "level": 10}', alone)
    findings.add_polite(200, b'{"scores": [0.5, 0.25], "level": 50}', alone)
    findings.add_polite(200, b'{"scores": [0.5], "level": 10}', alone)
    findings.add_polite(503, b"", alone)
    assert findings.failed == 4


def test_a_refusal_with_the_wrong_code_ends_with_exit_code_1(archives, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("elasticlm.serving.requests.FIELDS", ("text", "texts", "as", "query", "k"))
    code, result, failures = fuzzed(archives["embed"], tmp_path, capsys, "--core", 700, "--server", 0)
    assert code == 1
    assert result["core"]["failed"] == len(failures) > 0
    assert {failure["what"].split(":")[0] for failure in failures} <= {
        "mixed",
        "other task",
        "missing",
        "too many",
        "numbers",
    }


@pytest.mark.parametrize("task", TASKS)
def test_long_texts_are_compared_with_clipped_ones(archives, tmp_path, capsys, monkeypatch, task):
    texts = {name: hostile_texts.TEXTS[name] for name in ("words", "control characters")}
    for name, value in (("TEXTS", texts), ("RUNS", 1), ("ROUNDS", 1), ("MOST_RATIO", 1e9), ("FLAT", 1e9)):
        monkeypatch.setattr(hostile_texts, name, value)
    options = ["--hostile", "--archive", str(archives[task]), "--output", str(tmp_path / "out"), "--overwrite"]
    assert fuzz.main(options) == 0
    rows = json.loads((tmp_path / "out/hostile.json").read_text())["texts"]
    assert [(row["text"], row["KB"]) for row in rows] == [(name, size) for name in texts for size in (4, 16, 64, 256)]
    assert all(row["ms"] > 0 and row["clipped ms"] > 0 for row in rows)
    monkeypatch.setattr(hostile_texts, "MOST_RATIO", 1e-9)
    assert fuzz.main(options) == 1


@pytest.mark.slow
@pytest.mark.end_to_end
def test_the_real_server_stands_hostile_requests(archives, tmp_path, capsys):
    code, result, failures = fuzzed(archives["embed"], tmp_path, capsys, "--core", 0, "--server", 1500)
    assert (code, failures) == (0, [])
    assert result["server"]["requests"] == 1500
    assert result["server"]["polite"] > 50
