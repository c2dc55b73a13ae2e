"""Elastic language models: nested submodels in one set of weights, and the schedule that chooses among them."""

from elasticlm.errors import InputError
from elasticlm.latency import LatencyTable
from elasticlm.model import ElasticModel
from elasticlm.schedule import Load, parse_policy
from elasticlm.structure import ElasticStructure, Structure

__version__ = "0.1.0"

__all__ = ["ElasticModel", "ElasticStructure", "InputError", "LatencyTable", "Load", "Structure", "parse_policy"]
