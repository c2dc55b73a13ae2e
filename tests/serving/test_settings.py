"""Section `handler` of model-config.yaml: what it accepts, and what it says about mistakes."""

import math
from dataclasses import fields, replace

import pytest
import yaml

from elasticlm.errors import InputError
from elasticlm.handlers.packing import TEMPLATE
from elasticlm.handlers.torchserve_settings import read_handler_section
from elasticlm.serving.settings import Settings


def test_the_template_documents_every_setting_with_its_default():
    text = TEMPLATE.read_text()
    for field in fields(Settings):
        assert f"{field.name}:" in text, f"{field.name} is not in {TEMPLATE.name}"
    section = yaml.safe_load(text)["handler"]
    assert read_handler_section(section)[0] == Settings(latency_budget_ms=250)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"polcy": "slack"}, "did you mean 'policy'?"),
        ({"budget": 250}, "unknown setting 'budget'"),
        (["policy"], "expected settings"),
        ({}, "needs a budget"),
        ({"latency_budget_ms": 0}, "latency_budget_ms is 0, expected above 0"),
        ({"latency_budget_ms": math.inf}, "latency_budget_ms"),
        ({"latency_budget_ms": "250ms"}, "latency_budget_ms is '250ms', expected float"),
        ({"latency_budget_ms": True}, "latency_budget_ms is True, expected float"),
        ({"alpha": 1.5}, "alpha is 1.5, expected above 0 and at most 1"),
        ({"late": "rejct"}, "did you mean 'reject'?"),
        ({"backend": "cuda"}, "allowed: auto, onnx, torch"),
        ({"threads": 0}, "threads is 0, expected at least 1"),
        ({"threads": 1.5}, "threads is 1.5, expected int"),
        ({"max_tokens": 2}, "max_tokens"),
        ({"max_k": -1}, "max_k"),
        ({"overhead_ms": -1}, "overhead_ms"),
        ({"profile_on_start": "yes"}, "profile_on_start is 'yes', expected bool"),
        ({"management_url": "localhost:8081"}, "http://HOST:PORT"),
        ({"policy": "slak"}, "handler.policy"),
        ({"policy": "slack:t=-1"}, "handler.policy"),
        ({"policy": "fixed:0"}, "handler.policy"),
    ],
)
def test_mistakes_are_errors_that_name_the_setting(section, says):
    base = {"latency_budget_ms": 250} if isinstance(section, dict) and section else {}
    with pytest.raises(InputError, match=r"\A(?s:.*)" + says.replace("(", r"\(").replace("?", r"\?")):
        read_handler_section(base | section if isinstance(section, dict) else section)


@pytest.mark.parametrize(
    ("section", "policy", "budget_ms"),
    [
        ({"latency_budget_ms": 250}, "deadline:t=250", 250),
        ({"latency_budget_ms": 250, "policy": "slack", "alpha": 0.5}, "slack:t=250,alpha=.5", 250),
        ({"latency_budget_ms": 250, "policy": "slack:t=100"}, "slack:t=100,alpha=.6", 100),
        ({"policy": "queue:t=100"}, "queue:t=100", 100),
        ({"latency_budget_ms": 250, "policy": "queue"}, "queue:t=250", 250),
        ({"latency_budget_ms": 250, "policy": "fixed:50"}, "fixed:50", 250),
        ({"policy": "fixed:50"}, "fixed:50", math.inf),
        ({"policy": "fixed:50,t=100", "latency_budget_ms": 250}, "fixed:50", 100),
    ],
)
def test_values_in_the_policy_replace_those_of_the_settings(section, policy, budget_ms):
    settings = Settings(**section)
    assert str(settings.parsed_policy()) == policy
    assert settings.budget_ms == budget_ms
    assert replace(settings, latency_budget_ms=77).budget_ms == 77


def test_an_empty_management_url_means_do_not_ask():
    assert read_handler_section(yaml.safe_load("latency_budget_ms: 250\nmanagement_url:"))[1].management_url == ""
