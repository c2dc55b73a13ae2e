"""Rotary positions (RoPE; Su et al. 2021): queries and keys are rotated by angles that grow with their position."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from elasticlm.errors import InputError
from elasticlm.model.prefix_layers import Rotary

if TYPE_CHECKING:
    from elasticlm.backend.onnx_graph import GraphBuilder


def base_of(parameters: dict[str, Any]) -> float:
    """Return the base of the angles, by Hugging Face's rope_parameters; raises InputError for scaled positions."""
    if parameters["rope_type"] != "default":
        raise InputError(f"rope_parameters: type {parameters['rope_type']!r} is not supported")
    return parameters["rope_theta"]


def frequencies(base: float, head_size: int) -> np.ndarray:
    """Return the angles per position by which the pairs of a head's entries are rotated, FloatArray [head_size / 2]."""
    exponents = np.arange(0, head_size, 2, dtype=np.float32) / head_size
    return (1.0 / np.float32(base) ** exponents).astype(np.float32)


def tables(per_position: np.ndarray, tokens: int, like: Tensor) -> Rotary:
    """Return cosine and sine of the angles at so many positions, on the device and in the precision of ``like``."""
    positions = torch.arange(tokens, device=like.device)
    angles = positions[:, None].float() * torch.from_numpy(per_position).to(like.device)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def onnx_tables(graph: "GraphBuilder", per_position: np.ndarray) -> tuple[str, str]:
    """Add the same to a graph: cosine and sine, float [tokens, head_size / 2]."""
    positions = graph.node("Cast", graph.positions(), to=graph.FLOAT)
    column = graph.node("Unsqueeze", positions, graph.constant(np.array([1])))
    angles = graph.node("Mul", column, graph.constant(per_position[None]))
    return graph.node("Cos", angles), graph.node("Sin", angles)
