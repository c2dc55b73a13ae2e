"""BERT: learned positions, token types, post-norm layers with biases."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from elasticlm.model.families.base import HeadLayers
from elasticlm.model.families.post_norm import PostNormFamily

WEIGHT_NAMES = [
    ("embeddings.word_embeddings", "embeddings.word"),
    ("embeddings.position_embeddings", "embeddings.position"),
    ("embeddings.token_type_embeddings", "embeddings.token_type"),
    ("embeddings.LayerNorm", "embeddings.norm"),
    ("encoder.layer.", "layers."),
    ("attention.self.", "attention."),
    ("attention.output.dense", "attention.output"),
    ("attention.output.LayerNorm", "attention_norm"),
    ("intermediate.dense", "feed_forward.up"),
    ("output.dense", "feed_forward.down"),
    ("output.LayerNorm", "feed_forward_norm"),
]
SUPPORTED = {"position_embedding_type": (None, "absolute"), "is_decoder": (None, False)}
"""Of BERT and encoders derived from it: see EncoderFamily."""


class Bert(PostNormFamily):
    """BERT and encoders of its form (MiniLM, bge, e5, gte v1)."""

    name = "bert"
    prefix = "Bert"
    load_options = {"add_pooling_layer": False}
    supported = SUPPORTED
    weight_names = WEIGHT_NAMES
    uses_token_types = True

    def head_layers(self, theirs: Any) -> HeadLayers:
        return HeadLayers("bert.pooler.dense", "classifier")

    def lm_head(self, theirs: Any) -> Callable[[Tensor], Tensor]:
        return theirs.cls
