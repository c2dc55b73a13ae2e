"""Nomic BERT: BERT's order of blocks and norms, rotary positions, gated neurons, no biases (Nussbaum et al. 2024)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from elasticlm.errors import InputError
from elasticlm.model.configuration import ElasticConfig
from elasticlm.model.families import rotary
from elasticlm.model.families.base import HeadLayers
from elasticlm.model.families.post_norm import PostNormFamily, SummedEmbeddings
from elasticlm.model.prefix_layers import FeedForward, Rotary, SelfAttention

if TYPE_CHECKING:
    from elasticlm.backend.onnx_graph import GraphBuilder, Hidden


class RotaryAttention(SelfAttention):
    """Attention whose queries and keys are rotated."""

    def forward(
        self, x_btd: Tensor, mask: Any, heads: int, rotary: Rotary | None = None, *, dropout: float = 0.0
    ) -> Tensor:
        """Return [batch, tokens, dim]; ``mask``: what NomicBert.context() returns."""
        padding, rotation = mask
        return super().forward(x_btd, padding, heads, rotation, dropout=dropout)


class NomicEmbeddings(SummedEmbeddings):
    """Word and token type embeddings; also the frequencies of the rotary positions."""

    def __init__(self, own: Any) -> None:
        super().__init__(words=own.vocab_size, positions=0, types=own.type_vocab_size, width=own.hidden_size,
                         dim=own.hidden_size, eps=own.layer_norm_eps, pad=own.pad_token_id,
                         after_padding=False)  # fmt: skip
        self.frequencies = rotary.frequencies(rotary.base_of(own.rope_parameters), own.head_dim)


class NomicBert(PostNormFamily):
    """Nomic BERT (nomic-embed-text), as Hugging Face has it."""

    name = "nomic_bert"
    prefix = "NomicBert"
    load_options = {"add_pooling_layer": False}
    complete = ("embeddings.", "layers.")
    weight_names = [
        ("embeddings.word_embeddings", "embeddings.word"),
        ("embeddings.token_type_embeddings", "embeddings.token_type"),
        ("embeddings.LayerNorm", "embeddings.norm"),
        ("self_attn.q_proj", "attention.query"),
        ("self_attn.k_proj", "attention.key"),
        ("self_attn.v_proj", "attention.value"),
        ("self_attn.o_proj", "attention.output"),
        ("post_attention_layernorm", "attention_norm"),
        ("mlp.gate_proj", "feed_forward.up"),  # its "gate" has the activation
        ("mlp.up_proj", "feed_forward.gate"),
        ("mlp.down_proj", "feed_forward.down"),
        ("post_mlp_layernorm", "feed_forward_norm"),
    ]
    uses_token_types = True
    pooling = "mean"

    def config_fields(self, theirs: Any) -> dict[str, Any]:
        rotary.base_of(theirs.rope_parameters)  # raises InputError
        if theirs.head_dim * theirs.num_attention_heads != theirs.hidden_size:
            raise InputError(f"head_dim {theirs.head_dim} is not supported: heads must fill the hidden size")
        return super().config_fields(theirs)

    def head_layers(self, theirs: Any) -> HeadLayers:
        return HeadLayers("nomic_bert.pooler.dense", "classifier")

    def lm_head(self, theirs: Any) -> Callable[[Tensor], Tensor]:
        return theirs.cls

    def embeddings(self, config: ElasticConfig) -> NomicEmbeddings:
        return NomicEmbeddings(self.own_config(config))

    def attention(self, config: ElasticConfig, heads: int) -> RotaryAttention:
        return RotaryAttention(config.hidden_size, config.head_size, heads, bias=False)

    def feed_forward(self, config: ElasticConfig, neurons: int) -> FeedForward:
        return FeedForward(config.hidden_size, neurons, config.hidden_act, bias=False, gated=True)

    def context(self, encoder: nn.Module, tokens: int, mask: Tensor | None) -> tuple[Tensor | None, Rotary]:
        own = cast(NomicEmbeddings, encoder.embeddings)
        return mask, rotary.tables(own.frequencies, tokens, own.word.weight)

    def onnx_context(self, graph: "GraphBuilder", encoder: nn.Module) -> tuple[str, str]:
        return rotary.onnx_tables(graph, cast(NomicEmbeddings, encoder.embeddings).frequencies)

    def onnx_attention(
        self, graph: "GraphBuilder", hidden: "Hidden", context: tuple[str, str], block: SelfAttention, heads: int
    ) -> str:
        return graph.attention(hidden, block, heads, lacking=hidden.bias, rotary=context)
