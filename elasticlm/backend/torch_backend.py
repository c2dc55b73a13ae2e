"""PyTorch: prefix views of one set of weights, whose memory is that of its largest level alone."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from elasticlm.model.encoder import ElasticEncoder
from elasticlm.model.structure import Level, Structure


class TorchBackend:
    """Runs the modules themselves, on the device and in the precision of their parameters.

    Args:
        encoders: the encoder of each level, and what runs of it.
    """

    name = "torch"

    def __init__(self, encoders: Mapping[Level, tuple[ElasticEncoder, Structure]]) -> None:
        self._encoders = encoders

    @property
    def precision(self) -> str:
        dtype = self._words.weight.dtype
        return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]

    @property
    def device(self) -> str:
        return self._words.weight.device.type

    @property
    def _words(self) -> nn.Embedding:
        return next(iter(self._encoders.values()))[0].words

    @torch.inference_mode()
    def hidden(self, inputs: Mapping[str, Tensor], level: Level) -> Tensor:
        """Hidden states [batch, tokens, dim] of a tokenised batch at a level."""
        encoder, structure = self._encoders[level]
        return encoder(inputs["input_ids"], inputs["attention_mask"], inputs.get("token_type_ids"),
                       structure=structure)  # fmt: skip
