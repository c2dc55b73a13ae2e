"""Scaling by demand: the policy as a function of what replicas report."""

import importlib.util
from types import SimpleNamespace

import pytest

from elasticlm.handlers.ray_scaling import WORK_RATE, scale_by_demand


def context(replicas, rates):
    return SimpleNamespace(
        current_num_replicas=replicas,
        capacity_adjusted_min_replicas=1,
        aggregated_metrics=rates and {WORK_RATE: {str(i): rate for i, rate in enumerate(rates)}},
    )


@pytest.mark.parametrize(
    ("replicas", "rates", "expected"),
    [
        (1, [0.9], 1),
        (1, [1.1], 2),
        (1, [0.0], 1),
        (2, [1.5, 0.7], 3),
        (2, [0.6, 0.5], 2),
        (2, [0.4, 0.5], 1),
        (2, [2.5], 3),  # one of two replicas is new and has not reported yet
        (3, [0.5, 0.5, 0.6], 3),
        (3, [float("nan"), 0.5, 0.6], 2),
        (2, [], 2),
        (2, None, 2),
        (0, None, 1),
    ],
)
def test_replicas_follow_the_work_that_arrives(replicas, rates, expected):
    assert scale_by_demand(context(replicas, rates))[0] == expected


@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="needs the extra ray")
def test_ray_accepts_the_policy():
    from ray.serve.config import AutoscalingPolicy

    policy = AutoscalingPolicy(policy_function="elasticlm.handlers.ray_scaling:scale_by_demand")
    assert policy.get_policy()(context(1, [1.1]))[0] == 2
