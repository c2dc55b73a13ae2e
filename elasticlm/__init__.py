"""Elastic language models: nested submodels in one set of weights, and the schedule that chooses among them."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elasticlm.errors import InputError
    from elasticlm.latency import LatencyTable
    from elasticlm.model import ElasticModel
    from elasticlm.schedule import Load, parse_policy
    from elasticlm.structure import ElasticStructure, Structure

__version__ = "0.1.0"

__all__ = ["ElasticModel", "ElasticStructure", "InputError", "LatencyTable", "Load", "Structure", "parse_policy"]

_HOMES = {
    "InputError": "elasticlm.errors",
    "LatencyTable": "elasticlm.latency",
    "ElasticModel": "elasticlm.model",
    "Load": "elasticlm.schedule",
    "parse_policy": "elasticlm.schedule",
    "ElasticStructure": "elasticlm.structure",
    "Structure": "elasticlm.structure",
}


def __getattr__(name: str) -> Any:
    """Import on first use: what only parses or measures does not wait for torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'elasticlm' has no attribute {name!r}")
