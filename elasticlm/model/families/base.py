"""What the rest of the library asks of an encoder family.

A family is one file with one subclass of ``EncoderFamily``; everything in which encoders differ (weight names,
embeddings, blocks, gate points, token types, pair template, ONNX operators, parameter counts, language model head) is
there and nowhere else.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from elasticlm.model.structure import Structure

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
    "feed_forward.down.weight": ("neurons", 1),
}
"""Along which axis of a layer's weight its heads (head_size entries each) or neurons lie. Others belong to no unit."""


@dataclass(frozen=True)
class GatePoints:
    """Modules of one layer of a Hugging Face model whose input is gated: that of the heads and that of the neurons.

    The input of ``heads`` is [batch, tokens, heads * head_size], that of ``neurons`` [batch, tokens, neurons].
    """

    heads: nn.Module
    neurons: nn.Module


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
class MaskedLanguageModel:
    """A Hugging Face model with its language model head, in the two parts that masked losses need.

    Attributes:
        encoder: the encoder, for gate_points().
        hidden: (input_ids, attention_mask) -> hidden states [batch, tokens, dim].
        logits: hidden states [masked tokens, dim] -> logits [masked tokens, vocabulary].
    """

    encoder: PreTrainedModel
    hidden: Callable[[Tensor, Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]


class EncoderFamily(ABC):
    """One kind of encoder.

    Modules that a family makes name their weights as ``UNIT_AXES`` does, so that pruning and slicing need not know the
    family; where a family has further weights per unit, ``unit_axes`` has them too.
    """

    name: str
    """``family`` in config.json, and the model_type of the teachers' own configuration."""
    uses_token_types: bool
    """Whether the embeddings tell the first text of a pair from the second by ``token_type_ids``.

    If False, nothing tokenised for this family has ``token_type_ids``, and the embeddings receive None.
    """
    pooling: str = "cls"
    """Pooling of an encoder whose files name none."""
    classifier: str
    """Hugging Face's class with the sequence classification head, as ``architectures`` in config.json names it."""
    unit_axes: Mapping[str, tuple[str, int]] = UNIT_AXES

    # -- Loading a teacher ---------------------------------------------------------------------------------------------

    @abstractmethod
    def load(self, folder: str | Path, **options: Any) -> PreTrainedModel:
        """Load the Hugging Face encoder of a folder in fp32, without pooler.

        Raises InputError on missing weights, and on weights of layers that the encoder does not have.
        """

    @abstractmethod
    def load_classifier(self, folder: str | Path) -> Classifier:
        """Load the encoder with its sequence classification head in fp32. Raises InputError on missing weights."""

    @abstractmethod
    def load_masked_lm(self, folder: str | Path) -> MaskedLanguageModel:
        """Load the encoder with its language model head. Raises InputError where the folder has none."""

    @abstractmethod
    def config_fields(self, theirs: Any) -> dict[str, Any]:
        """Return the fields of ElasticConfig that a Hugging Face configuration decides.

        Raises InputError where the configuration asks for something that the family does not have.
        """

    @abstractmethod
    def elastic_weights(self, theirs: nn.Module) -> dict[str, Tensor]:
        """Return the weights of a Hugging Face encoder under the names of ElasticModel, units in their own order."""

    @abstractmethod
    def to_transformers(self, config: "ElasticConfig", weights: Mapping[str, Tensor]) -> PreTrainedModel:
        """Return the Hugging Face encoder that holds these weights (those of a model with a single, whole level)."""

    @abstractmethod
    def gate_points(self, theirs: nn.Module) -> list[GatePoints]:
        """Return where the expressive score's gates go, for every layer (ElasticLM, section 4.1)."""

    # -- The elastic encoder -------------------------------------------------------------------------------------------

    @abstractmethod
    def embeddings(self, config: "ElasticConfig") -> nn.Module:
        """Make the embeddings, with the word embeddings as the nn.Embedding ``word``.

        forward(input_ids, token_type_ids or None) -> [batch, tokens, dim].
        """

    @abstractmethod
    def layer(self, config: "ElasticConfig", index: int, heads: int, neurons: int) -> nn.Module:
        """Make one layer with so many units: forward(hidden, context, heads=, neurons=) -> hidden."""

    def final(self, config: "ElasticConfig") -> nn.Module:
        """Make what follows the last layer (a last norm in pre-norm encoders); nothing by default.

        A family that overrides this overrides onnx_output() too.
        """
        return nn.Identity()

    @abstractmethod
    def context(self, encoder: nn.Module, attention_mask: Tensor) -> Any:
        """Return what all layers of one pass share: the attention mask, position biases, rotary tables."""

    # -- Size ----------------------------------------------------------------------------------------------------------

    @abstractmethod
    def prunable_parameters(self, config: "ElasticConfig", structure: Structure) -> int:
        """Parameters of the heads and neurons kept (embeddings, output biases and norms left out)."""

    @abstractmethod
    def flops(self, config: "ElasticConfig", structure: Structure, tokens: int) -> int:
        """Floating point operations of the matrix products for one sequence (two per multiply-add)."""

    # -- ONNX ----------------------------------------------------------------------------------------------------------

    @abstractmethod
    def embedding_sum(self, embeddings: nn.Module) -> Callable[[np.ndarray, np.ndarray | None], np.ndarray]:
        """Return (input_ids, token_type_ids) -> what an ONNX graph takes in, FloatArray [batch, tokens, dim].

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
        """Add one layer on a prefix of its units.

        Args:
            context: what onnx_context() returned.
            index: of the layer, from 0; families whose layers differ by position need it.
            activation: the configuration's hidden_act.
            in_fp32: neurons that stay in fp32 in an int8 graph.
        """

    def onnx_output(self, graph: "GraphBuilder", hidden: "Hidden", final: nn.Module) -> "Hidden":
        """Add what follows the last layer: the counterpart of ``final``, the module that final() made."""
        return hidden
