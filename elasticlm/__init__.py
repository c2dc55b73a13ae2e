"""Elastic language models: nested submodels in one set of weights, and the schedule that chooses among them."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elasticlm.errors import InputError
    from elasticlm.model.elastic_model import ElasticModel
    from elasticlm.model.structure import ElasticStructure, Structure
    from elasticlm.schedule.latency import LatencyTable
    from elasticlm.schedule.load import Load
    from elasticlm.schedule.policies import decide, parse_policy

__version__ = "0.1.0"

__all__ = [
    "ElasticModel",
    "ElasticStructure",
    "InputError",
    "LatencyTable",
    "Load",
    "Structure",
    "decide",
    "parse_policy",
]

_HOMES = {
    "InputError": "elasticlm.errors",
    "LatencyTable": "elasticlm.schedule.latency",
    "ElasticModel": "elasticlm.model.elastic_model",
    "Load": "elasticlm.schedule.load",
    "decide": "elasticlm.schedule.policies",
    "parse_policy": "elasticlm.schedule.policies",
    "ElasticStructure": "elasticlm.model.structure",
    "Structure": "elasticlm.model.structure",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that code that does not need torch does not wait for its import."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'elasticlm' has no attribute {name!r}")
