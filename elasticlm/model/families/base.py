"""What the rest of the library asks of an encoder family.

A family is one file with one subclass of ``EncoderFamily``; everything in which encoders differ (weight names,
embeddings, blocks, positions, token types, ONNX operators, heads) is there and nowhere else.
"""

import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from elasticlm.errors import InputError
from elasticlm.model.dropout import Dropout
from elasticlm.model.structure import Structure
from elasticlm.model.transformers_loading import MissingWeightsError, head_of, load_transformers

if TYPE_CHECKING:
    from elasticlm.backend.onnx_graph import GraphBuilder, Hidden
    from elasticlm.model.configuration import ElasticConfig, Head

UNIT_AXES = {
    "attention.query.weight": ("heads", 0),
    "attention.query.bias": ("heads", 0),
    "attention.key.weight": ("heads", 0),
    "attention.key.bias": ("heads", 0),
    "attention.value.weight": ("heads", 0),
    "attention.value.bias": ("heads", 0),
    "attention.output.weight": ("heads", 1),
    "feed_forward.up.weight": ("neurons", 0),
    "feed_forward.up.bias": ("neurons", 0),
    "feed_forward.gate.weight": ("neurons", 0),
    "feed_forward.gate.bias": ("neurons", 0),
    "feed_forward.down.weight": ("neurons", 1),
}
"""Along which axis of a layer's weight its units lie: "heads" have head_size entries each, "neurons" one.

A family need not have all of them, and may have others, where "head" stands for heads with one entry each. Weights that
are not listed belong to no unit.
"""
CLASSIFIER = "ForSequenceClassification"
PAPER_TOKENS = 128
"""Length of the sequence whose GFLOPs the paper reports."""
DERIVED = ("model_type", "architectures", "_name_or_path", "transformers_version", "id2label", "label2id")
"""Fields of a Hugging Face configuration that are not taken over."""


@dataclass(frozen=True)
class HeadLayers:
    """Where a Hugging Face model with a sequence classification head has the parts of the head.

    Attributes:
        pooler, output: names of its linear layers.
        norm: name of the LayerNorm behind the pooler's activation; None where there is none.
        activation: of the pooler.
        pooling: how hidden states become what the head sees.
    """

    pooler: str
    output: str
    norm: str | None = None
    activation: str = "tanh"
    pooling: str = "cls"


@dataclass(frozen=True)
class Classifier:
    """A Hugging Face encoder with a trained sequence classification head.

    Attributes:
        encoder: the encoder, as EncoderFamily.load() returns it.
        head: the configuration of the head.
        weights: of the head, under their names in an artifact (see elasticlm.model.heads).
    """

    encoder: PreTrainedModel
    head: "Head"
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class OnnxUnits:
    """What a layer of an ONNX graph keeps.

    Attributes:
        heads, neurons: how many of them.
        activation: the configuration's hidden_act.
    """

    heads: int
    neurons: int
    activation: str


class EncoderFamily(ABC):
    """One kind of encoder.

    Modules that a family makes name their weights as ``UNIT_AXES`` does, so that pruning, slicing and counting need not
    know the family.
    """

    name: ClassVar[str]
    """``family`` in config.json, and the model_type of the teachers' own configuration."""
    prefix: ClassVar[str]
    """The names of Hugging Face's classes begin with this: ``BertConfig``, ``BertModel``, ..."""
    load_options: ClassVar[Mapping[str, Any]] = {}
    """Arguments of the encoder's class that leave out what is not part of the encoder."""
    complete: ClassVar[tuple[str, ...]] = ("embeddings.", "encoder.")
    """Beginnings of the encoder's weight names: a checkpoint with other weights there is of another architecture."""
    supported: ClassVar[Mapping[str, tuple[Any, ...]]] = {"is_decoder": (None, False)}
    """Fields of the configuration that change what the encoder computes, and the values that the family computes."""
    field_names: ClassVar[Mapping[str, str]] = {}
    """What the family's own configuration calls fields of ElasticConfig, where the names differ."""
    weight_names: ClassVar[Sequence[tuple[str, str]]]
    """Parts of the encoder's weight names and what ElasticModel calls them, applied in order."""
    dropout_fields: ClassVar[Mapping[str, Sequence[str]]]
    """Where Hugging Face's class drops values in training, as the fields of Dropout, and which field of the family's
    own configuration has the rate; the first of them that is set counts."""
    uses_token_types: ClassVar[bool]
    """Whether the embeddings tell the first text of a pair from the second by ``token_type_ids``.

    If False, nothing tokenised for this family has ``token_type_ids``, and the embeddings receive None.
    """
    pooling: ClassVar[str] = "cls"
    """Pooling of an encoder whose files name none."""
    unit_axes: ClassVar[Mapping[str, tuple[str, int]]] = UNIT_AXES

    def class_named(self, ending: str) -> Any:
        """Return Hugging Face's class ``prefix`` + ending: "Config", "Model", "ForMaskedLM", CLASSIFIER."""
        return getattr(transformers, self.prefix + ending)

    # -- Loading a teacher ---------------------------------------------------------------------------------------------

    def load(self, folder: str | Path, **options: Any) -> PreTrainedModel:
        """Load the Hugging Face encoder of a folder in fp32, without pooler.

        Raises InputError on missing weights, and on weights of layers that the encoder does not have.
        """
        encoder_class = self.class_named("Model")
        return load_transformers(folder, encoder_class, complete=self.complete, **self.load_options, **options)

    def load_classifier(self, folder: str | Path) -> Classifier:
        """Load the encoder with its sequence classification head in fp32. Raises InputError on missing weights."""
        model = load_transformers(folder, self.class_named(CLASSIFIER), complete=self.complete)
        return Classifier(model.base_model, *head_of(folder, model, self.head_layers(model.config)))

    def load_lm_head(self, folder: str | Path) -> Callable[[Tensor], Tensor]:
        """Load the language model head: hidden states [tokens, dim] -> logits [tokens, vocabulary].

        Raises InputError where the folder has none.
        """
        masked_lm = self.class_named("ForMaskedLM")
        try:
            model = load_transformers(folder, masked_lm)
        except MissingWeightsError as error:
            if any(name.startswith(f"{masked_lm.base_model_prefix}.") for name in error.names):
                raise
            raise InputError(f"{folder} has no masked language model head") from None
        return self.lm_head(model)

    @abstractmethod
    def head_layers(self, theirs: Any) -> HeadLayers:
        """Return where the sequence classification head is, by the Hugging Face configuration of the model."""

    @abstractmethod
    def lm_head(self, theirs: Any) -> Callable[[Tensor], Tensor]:
        """Return the language model head of a Hugging Face model that has one."""

    def config_fields(self, theirs: PreTrainedConfig) -> dict[str, Any]:
        """Return the fields of ElasticConfig that a Hugging Face configuration decides.

        Raises InputError where the configuration asks for something that the family does not have.
        """
        for name, supported in self.supported.items():
            if getattr(theirs, name, None) not in supported:
                raise InputError(f"{name} {getattr(theirs, name)!r} is not supported")
        fields = {name: value for name, value in theirs.to_dict().items() if name not in DERIVED}
        for ours, own in self.field_names.items():
            fields[ours] = fields.pop(own)
        if fields["hidden_act"] not in ACT2FN:
            raise InputError(f"hidden_act {fields['hidden_act']!r} is not supported")
        return fields | {"family": self.name}

    def own_config(self, config: "ElasticConfig") -> Any:
        """Return the family's own Hugging Face configuration for a configuration of ours."""
        fields = config.to_dict()
        for ours, own in self.field_names.items():
            fields[own] = fields.pop(ours)
        config_class = self.class_named("Config")
        known = _known_fields(config_class)
        return config_class(**{name: value for name, value in fields.items() if name in known})

    def elastic_weights(self, theirs: nn.Module) -> dict[str, Tensor]:
        """Return the weights of a Hugging Face encoder under the names of ElasticModel, units in their own order."""
        weights = {}
        for name, weight in theirs.state_dict().items():
            if not name.startswith(self.complete):
                continue  # a pooler
            for part, ours in self.weight_names:
                name = name.replace(part, ours)
            weights[f"encoder.{name}"] = weight
        return weights

    def longest(self, config: "ElasticConfig") -> int:
        """Tokens of the longest input that the encoder has positions for."""
        return config.max_position_embeddings

    def dropout(self, config: "ElasticConfig", rate: float | None = None) -> Dropout:
        """Return where values are dropped in training: the places of Hugging Face's class.

        Args:
            rate: for all of these places; None: the rates of the teacher's configuration.
        """
        own = self.own_config(config)

        def configured(names: Sequence[str]) -> float:
            return next((found for name in names if (found := getattr(own, name, None)) is not None), 0.0)

        return Dropout(**{place: configured(names) if rate is None else rate
                          for place, names in self.dropout_fields.items()})  # fmt: skip

    # -- The elastic encoder -------------------------------------------------------------------------------------------

    @abstractmethod
    def embeddings(self, config: "ElasticConfig") -> nn.Module:
        """Make the embeddings, with the word embeddings as the nn.Embedding ``word``.

        forward(input_ids, token_type_ids or None, dropout=rate) -> [batch, tokens, dim].
        """

    @abstractmethod
    def layer(self, config: "ElasticConfig", index: int, heads: int, neurons: int) -> nn.Module:
        """Make one layer with so many units: forward(hidden, context, heads=, neurons=, dropout=) -> hidden.

        It has a SelfAttention ``attention``, a FeedForward ``feed_forward`` and a method ``attention_input``: hidden ->
        what the attention sees of it.
        """

    def final(self, config: "ElasticConfig") -> nn.Module:
        """Make what follows the last layer (a last norm in pre-norm encoders); nothing by default.

        A family that overrides this overrides onnx_output() too.
        """
        return nn.Identity()

    @abstractmethod
    def context(self, encoder: nn.Module, tokens: int, mask: Tensor | None) -> Any:
        """Return what all layers of one pass share: the attention mask, position biases, rotary tables.

        Args:
            mask: BoolTensor [batch, 1, 1, tokens], False for padding; None where nothing is padded, since attention
                without a mask is faster.
        """

    # -- Size ----------------------------------------------------------------------------------------------------------

    def prunable_parameters(self, config: "ElasticConfig", structure: Structure) -> int:
        """Parameters of the heads and neurons kept (embeddings, output biases and norms left out)."""
        return sum(self._unit_weights(config, structure).values())

    def flops(self, config: "ElasticConfig", structure: Structure, tokens: int) -> int:
        """Floating point operations of the matrix products for one sequence (two per multiply-add)."""
        matrices = self._matrix_entries(config, structure)
        return 2 * tokens * (matrices + sum(structure.heads) * config.head_size * 2 * tokens)

    def paper_gflops(self, config: "ElasticConfig", structure: Structure) -> float:
        """GFLOPs as the paper's tables 4 to 6 count them: 10.9 for BERT-base, 5.44 for half of it.

        These are the multiply-adds of the linear layers for one sequence of 128 tokens, in 10^9; attention scores,
        embeddings and norms are left out. flops() counts each multiply-add twice and includes the attention scores.
        """
        return PAPER_TOKENS * self._matrix_entries(config, structure) / 1e9

    def _matrix_entries(self, config: "ElasticConfig", structure: Structure) -> int:
        """Entries of the matrices of all units: the multiply-adds of their linear layers per token."""
        return sum(size for name, size in self._unit_weights(config, structure).items() if name.endswith("weight"))

    def _unit_weights(self, config: "ElasticConfig", structure: Structure) -> dict[str, int]:
        """Sizes of the parameters that belong to units, by layer and name."""
        units = zip(structure.heads, structure.neurons, strict=True)
        with torch.device("meta"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            layers = [self.layer(config, i, heads, neurons) for i, (heads, neurons) in enumerate(units)]
        return {f"{i}.{name}": weight.numel() for i, layer in enumerate(layers)
                for name, weight in layer.named_parameters() if name in self.unit_axes}  # fmt: skip

    # -- ONNX ----------------------------------------------------------------------------------------------------------

    @abstractmethod
    def embedding_sum(self, embeddings: nn.Module) -> Callable[[np.ndarray, np.ndarray | None], np.ndarray]:
        """Return (input_ids, token_type_ids) -> what an ONNX graph takes in, FloatArray [batch, tokens, width].

        The tables are shared with the module, not copied.
        """

    @abstractmethod
    def onnx_input(self, graph: "GraphBuilder", name: str, embeddings: nn.Module) -> "Hidden":
        """Add what turns the graph's input into the first layer's hidden states."""

    def onnx_context(self, graph: "GraphBuilder", encoder: nn.Module) -> Any:
        """Add what all layers of a graph share, once per graph, and return it for onnx_layer(); nothing by default.

        The counterpart of context(): position biases, rotary tables, masks of local attention. The padding mask is an
        input of the graph and needs nothing here.
        """
        return None

    @abstractmethod
    def onnx_layer(
        self, graph: "GraphBuilder", hidden: "Hidden", context: Any, layer: nn.Module, kept: OnnxUnits
    ) -> "Hidden":
        """Add one layer on a prefix of its units.

        Args:
            context: what onnx_context() returned.
        """

    def onnx_output(self, graph: "GraphBuilder", hidden: "Hidden", final: nn.Module) -> "Hidden":
        """Add what follows the last layer: the counterpart of ``final``, the module that final() made."""
        return hidden


@functools.cache
def _known_fields(config_class: type[PreTrainedConfig]) -> frozenset[str]:
    """The fields of a Hugging Face configuration; found once, since every layer asks for them."""
    return frozenset(config_class().to_dict()) - set(DERIVED)
