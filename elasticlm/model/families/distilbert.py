"""DistilBERT: BERT's layers without token types (Sanh et al. 2019)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from elasticlm.model.families.base import HeadLayers
from elasticlm.model.families.post_norm import PostNormFamily


class DistilBert(PostNormFamily):
    """DistilBERT."""

    name = "distilbert"
    prefix = "DistilBert"
    complete = ("embeddings.", "transformer.")
    field_names = {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    }
    weight_names = [
        ("embeddings.word_embeddings", "embeddings.word"),
        ("embeddings.position_embeddings", "embeddings.position"),
        ("embeddings.LayerNorm", "embeddings.norm"),
        ("transformer.layer.", "layers."),
        ("attention.q_lin", "attention.query"),
        ("attention.k_lin", "attention.key"),
        ("attention.v_lin", "attention.value"),
        ("attention.out_lin", "attention.output"),
        ("sa_layer_norm", "attention_norm"),
        ("ffn.lin1", "feed_forward.up"),
        ("ffn.lin2", "feed_forward.down"),
        ("output_layer_norm", "feed_forward_norm"),
    ]
    dropout_fields = {
        "embeddings": ("dropout",),
        "attention": ("attention_dropout",),
        "feed_forward_output": ("dropout",),
        "head": ("seq_classif_dropout",),
    }
    uses_token_types = False

    def eps(self, own: Any) -> float:
        return 1e-12  # fixed in its code

    def head_layers(self, theirs: Any) -> HeadLayers:
        return HeadLayers("pre_classifier", "classifier", activation="relu")

    def lm_head(self, theirs: Any) -> Callable[[Tensor], Tensor]:
        return lambda hidden: theirs.vocab_projector(
            theirs.vocab_layer_norm(theirs.activation(theirs.vocab_transform(hidden)))
        )
