"""Live settings: taken when the file changes, kept when it is wrong, as packed when it goes."""

import logging
import os

import pytest

from elasticlm.errors import InputError
from elasticlm.serving.live_settings import LOOK_EVERY_S, LiveSettings
from elasticlm.serving.settings import Settings


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def live(tmp_path):
    """Live settings over tmp_path/live.yaml, their clock, and a function that writes the file and lets time pass."""
    clock, file, adopted = Clock(), tmp_path / "live.yaml", []

    def adopt(settings):
        if settings.policy == "fixed:77":
            raise InputError("no level 77")
        adopted.append(settings)

    made = LiveSettings(Settings(latency_budget_ms=250, live_file=str(file)), adopt, clock)

    def write(text):
        file.write_text(text)
        os.utime(file, ns=(0, int(clock.now * 1e9) + len(adopted) + 1))
        clock.now += LOOK_EVERY_S + 0.1
        return made()

    made.write, made.file, made.clock, made.adopted = write, file, clock, adopted
    return made


def test_without_a_file_the_settings_are_the_archives(live):
    settings = Settings(latency_budget_ms=250)
    assert LiveSettings(settings, live.adopted.append)() is settings
    assert live().latency_budget_ms == 250
    assert not live.adopted


def test_a_change_is_taken_and_adopted_once(live):
    assert live.write("latency_budget_ms: 100\npolicy: queue").latency_budget_ms == 100
    assert [str(settings.parsed_policy()) for settings in live.adopted] == ["queue:t=100"]
    live.clock.now += 10
    live()
    assert len(live.adopted) == 1


@pytest.mark.parametrize(
    "text",
    ["latency_budget_ms: 2024-13-45", "latency_budget_ms: " + "9" * 400, "latency_budget_ms: 2024-12-24",
     "policy: " + "[" * 5000, "{" * 5000, "latency_budget_ms: 1e999", "latency_budget_ms: .nan", "policy: [queue]",
     "late: 1", "? {a: 1}\n: 2", "1: 2", "!!python/object/apply:os.system [ls]", "&a [*a]", "a: &x [*x]", "\x00",
     "policy: " + "x" * 100_000],
)  # fmt: skip
def test_whatever_the_file_holds_the_settings_stay(live, caplog, text):
    assert live.write(text).latency_budget_ms == 250
    assert len([record for record in caplog.records if "keeping the previous" in record.message]) == 1
    assert live.write("latency_budget_ms: 100").latency_budget_ms == 100


def test_a_file_that_is_not_utf8_and_a_fifo_leave_the_settings_as_they_are(live, caplog):
    live.file.write_bytes(b"latency_budget_ms: 1\xff")
    assert live().latency_budget_ms == 250
    live.file.unlink()
    os.mkfifo(live.file)
    live.clock.now += LOOK_EVERY_S + 0.1
    assert live().latency_budget_ms == 250
    assert [("not a regular file" in record.message) for record in caplog.records] == [False, True]


def test_the_file_is_looked_at_once_a_second(live):
    live()
    live.file.write_text("latency_budget_ms: 90")
    assert live().latency_budget_ms == 250
    live.clock.now += LOOK_EVERY_S
    assert live().latency_budget_ms == 90


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("latency_budget_ms: -1", "above 0"),
        ("latency_budget: 1", "did you mean 'latency_budget_ms'"),
        ("threads: 4", "pack the archive again"),
        ("policy: fixed:77", "no level 77"),
        ("[1", "cannot be read"),
        ("7", "expected a mapping"),
    ],
)
def test_what_is_wrong_is_logged_and_not_taken(live, caplog, text, says):
    live.write("latency_budget_ms: 100")
    with caplog.at_level(logging.ERROR):
        assert live.write(text).latency_budget_ms == 100
    assert says in caplog.text
    assert live.write("latency_budget_ms: 80").latency_budget_ms == 80


def test_a_file_taken_away_restores_what_was_packed(live):
    live.write("latency_budget_ms: 100")
    live.file.unlink()
    live.clock.now += 2
    assert live().latency_budget_ms == 250


@pytest.mark.parametrize("packed", ["slack:t=300,alpha=0.7", "queue:t=300"])
def test_a_live_budget_takes_precedence_over_the_t_of_the_packed_policy(tmp_path, packed):
    file = tmp_path / "live.yaml"
    file.write_text("latency_budget_ms: 100")
    settings = LiveSettings(Settings(policy=packed, live_file=str(file)), lambda settings: None)()
    assert settings.budget_ms == settings.parsed_policy().budget_ms == 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("policy: slack:t=100\nlatency_budget_ms: 200", "latency_budget_ms is 200, but the policy has t=100"),
        ("policy: slack:t=100,alpha=.5\nalpha: .6", "alpha is 0.6, but the policy has alpha=0.5"),
        ("policy: queue\nalpha: .6", "alpha has no effect"),
        ("policy: fixed:50\nalpha: .6", "alpha has no effect"),
    ],
)
def test_a_live_setting_without_an_effect_is_refused(live, caplog, text, message):
    live.write(text)
    assert message in caplog.text
    assert not live.adopted
