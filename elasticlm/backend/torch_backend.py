"""PyTorch: prefix views of one set of weights. Memory is that of the largest level alone."""

from collections.abc import Mapping

import torch
from torch import Tensor

from elasticlm.model.encoder import ElasticEncoder
from elasticlm.model.structure import ElasticStructure, Level


class TorchBackend:
    """Runs the module itself, on the device and in the precision of its parameters."""

    name = "torch"

    def __init__(self, encoder: ElasticEncoder, structures: ElasticStructure) -> None:
        self._encoder = encoder
        self._structures = structures

    @property
    def precision(self) -> str:
        dtype = self._encoder.words.weight.dtype
        return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]

    @property
    def device(self) -> str:
        return self._encoder.words.weight.device.type

    @torch.inference_mode()
    def hidden(self, inputs: Mapping[str, Tensor], level: Level) -> Tensor:
        """Hidden states [batch, tokens, dim] of a tokenised batch at a level."""
        return self._encoder(inputs["input_ids"], inputs["attention_mask"], inputs.get("token_type_ids"),
                             structure=self._structures[level])  # fmt: skip
