"""BERT: learned positions, token types, post-norm layers with biases."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from elasticlm.errors import InputError
from elasticlm.model.configuration import ElasticConfig
from elasticlm.model.families.base import Classifier, EncoderFamily, GatePoints, MaskedLanguageModel
from elasticlm.model.prefix_layers import FeedForward, SelfAttention
from elasticlm.model.structure import Structure
from elasticlm.model.transformers_loading import head_of, load_transformers

if TYPE_CHECKING:
    from elasticlm.backend.onnx_graph import GraphBuilder, Hidden

MODEL = "bert"
"""Its model_type, and the prefix of the encoder's weights in checkpoints with a head."""
SUPPORTED = {"position_embedding_type": (None, "absolute"), "is_decoder": (None, False)}
"""Fields of BertConfig that change attention, and the values that this family computes."""
COMPLETE = ("encoder.", "embeddings.")
"""Parts of BertModel: a checkpoint that has further weights in them is of another architecture."""
WEIGHT_NAMES = [
    ("embeddings.word_embeddings", "embeddings.word"),
    ("embeddings.position_embeddings", "embeddings.position"),
    ("embeddings.token_type_embeddings", "embeddings.token_type"),
    ("embeddings.LayerNorm", "embeddings.norm"),
    ("attention.self.", "attention."),
    ("attention.output.dense", "attention.output"),
    ("attention.output.LayerNorm", "attention_norm"),
    ("intermediate.dense", "feed_forward.up"),
    ("output.dense", "feed_forward.down"),
    ("output.LayerNorm", "feed_forward_norm"),
]
"""Parts of BertModel's weight names and what ElasticModel calls them; the first match counts."""


class BertEmbeddings(nn.Module):
    """Word, position and token type embeddings, summed and normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Return [batch, tokens, dim]; token types None stand for all 0."""
        positions = self.position.weight[: input_ids.shape[1]]
        types = self.token_type.weight[0] if token_type_ids is None else self.token_type(token_type_ids)
        return self.norm(self.word(input_ids) + positions + types)


class BertLayer(nn.Module):
    """One Transformer layer (post-norm), run on a prefix of its units."""

    def __init__(self, config: BertConfig, heads: int, neurons: int) -> None:
        super().__init__()
        head_size = config.hidden_size // config.num_attention_heads
        self.attention = SelfAttention(config.hidden_size, head_size, heads)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config.hidden_size, neurons, config.hidden_act)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x_btd: Tensor, context: Tensor | None, *, heads: int, neurons: int) -> Tensor:
        """Return [batch, tokens, dim]; ``context`` is the attention mask."""
        x_btd = self.attention_norm(x_btd + self.attention(x_btd, context, heads))
        return self.feed_forward_norm(x_btd + self.feed_forward(x_btd, neurons))


class Bert(EncoderFamily):
    """BERT and encoders of its form (MiniLM, bge, e5, gte v1)."""

    name = MODEL
    uses_token_types = True
    classifier = BertForSequenceClassification.__name__

    def load(self, folder: str | Path, **options: Any) -> BertModel:
        return load_transformers(folder, BertModel, complete=COMPLETE, add_pooling_layer=False, **options)

    def load_classifier(self, folder: str | Path) -> Classifier:
        model = load_transformers(folder, BertForSequenceClassification, complete=COMPLETE)
        layers = {"pooler": model.bert.pooler.dense, "output": model.classifier}
        return Classifier(model.bert, *head_of(folder, model.config, layers, activation="tanh"))

    def load_masked_lm(self, folder: str | Path) -> MaskedLanguageModel:
        try:
            model = load_transformers(folder, BertForMaskedLM)
        except InputError as error:
            if "cls.predictions" not in str(error):
                raise
            raise InputError(f"{folder} has no masked language model head") from None
        return MaskedLanguageModel(model.bert, lambda ids, mask: model.bert(ids, mask).last_hidden_state, model.cls)

    def config_fields(self, theirs: BertConfig) -> dict[str, Any]:
        for name, supported in SUPPORTED.items():
            if getattr(theirs, name, None) not in supported:
                raise InputError(f"{name} {getattr(theirs, name)!r} is not supported")
        fields = theirs.to_dict()
        for derived in ("model_type", "architectures", "_name_or_path", "transformers_version", "id2label", "label2id"):
            fields.pop(derived, None)
        return fields | {"family": self.name}

    def elastic_weights(self, theirs: nn.Module) -> dict[str, Tensor]:
        return {ours: weight for name, weight in theirs.state_dict().items() if (ours := _our_name(name))}

    def to_transformers(self, config: ElasticConfig, weights: Mapping[str, Tensor]) -> BertModel:
        bert = BertModel(_own_config(config), add_pooling_layer=False)
        bert.load_state_dict({name: weights[ours] for name in bert.state_dict() if (ours := _our_name(name))})
        return bert.eval()

    def gate_points(self, theirs: nn.Module) -> list[GatePoints]:
        layers: Any = cast(BertModel, theirs).encoder.layer
        return [GatePoints(heads=layer.attention.output.dense, neurons=layer.output.dense) for layer in layers]

    def embeddings(self, config: ElasticConfig) -> BertEmbeddings:
        return BertEmbeddings(_own_config(config))

    def layer(self, config: ElasticConfig, index: int, heads: int, neurons: int) -> BertLayer:
        return BertLayer(_own_config(config), heads, neurons)

    def context(self, encoder: nn.Module, attention_mask: Tensor) -> Tensor | None:
        # Without padding there is nothing to mask, and attention without a mask is faster.
        return None if bool(attention_mask.all()) else attention_mask[:, None, None, :].bool()

    def prunable_parameters(self, config: ElasticConfig, structure: Structure) -> int:
        per_head = config.head_size * (4 * config.hidden_size + 3)  # Q, K, V with bias; output without
        per_neuron = 2 * config.hidden_size + 1
        return sum(structure.heads) * per_head + sum(structure.neurons) * per_neuron

    def flops(self, config: ElasticConfig, structure: Structure, tokens: int) -> int:
        width, dim = sum(structure.heads) * config.head_size, config.hidden_size
        projections = width * 4 * dim + sum(structure.neurons) * 2 * dim
        return 2 * tokens * (projections + width * 2 * tokens)

    def embedding_sum(self, embeddings: nn.Module) -> Callable[[np.ndarray, np.ndarray | None], np.ndarray]:
        own = cast(BertEmbeddings, embeddings)
        word, position, token_type = (
            table.weight.detach().numpy() for table in (own.word, own.position, own.token_type)
        )

        def summed(ids: np.ndarray, types: np.ndarray | None) -> np.ndarray:
            total = np.take(word, ids, axis=0)
            total += position[: ids.shape[1]]
            total += token_type[0] if types is None else np.take(token_type, types, axis=0)
            return total

        return summed

    def onnx_input(self, graph: "GraphBuilder", name: str, embeddings: nn.Module) -> "Hidden":
        return graph.normalise(name, cast(BertEmbeddings, embeddings).norm)

    def onnx_layer(
        self,
        graph: "GraphBuilder",
        hidden: "Hidden",
        context: Any,
        layer: nn.Module,
        *,
        index: int,
        heads: int,
        neurons: int,
        activation: str,
        in_fp32: Sequence[int],
    ) -> "Hidden":
        own = cast(BertLayer, layer)
        added = graph.attention(hidden, own.attention, heads)
        hidden = graph.normalise(graph.node("Add", hidden.name, added), own.attention_norm)
        added = graph.feed_forward(hidden, own.feed_forward, neurons, activation, in_fp32)
        return graph.normalise(graph.node("Add", hidden.name, added), own.feed_forward_norm)


def _own_config(config: ElasticConfig) -> BertConfig:
    known = BertConfig().to_dict()
    fields = {key: value for key, value in config.to_dict().items()
              if key in known and key not in ("model_type", "architectures")}  # fmt: skip
    return BertConfig(**fields)


def _our_name(theirs: str) -> str | None:
    """What ElasticModel calls a weight of BertModel; None for weights that it does not have."""
    for part, ours in WEIGHT_NAMES:
        if part in theirs:
            return "encoder." + theirs.replace(part, ours).replace("encoder.layer.", "layers.")
    return None
