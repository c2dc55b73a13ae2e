"""A level as an ONNX graph of its own, made of the operators for which ONNX Runtime has fast kernels on a CPU.

    inputs   embeddings      float [batch, tokens, width], the sum of the family's embeddings, not normalised yet
             attention_mask  int32 [batch, tokens], 1 for tokens and 0 for padding
    output   hidden          float [batch, tokens, dim]

Word embeddings are not part of the graph: all levels share them (see elasticlm.backend.onnx_runtime). In int8, each
column of a weight matrix has a scale, and each activation one scale and zero point per batch, computed at run time
(dynamic quantisation). A few neurons of each layer reach many times the values of all others (in MiniLM 28 compared
with 6) and would determine the scale alone: these stay in fp32. The channels of a block's input are scaled against the
weight for the same reason (`channel_scales`). Both need to know what real texts do: see `Calibration`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from elasticlm.backend.onnx_runtime import EMBEDDINGS, HIDDEN, MASK
from elasticlm.errors import InputError
from elasticlm.model.encoder import ElasticEncoder
from elasticlm.model.families.base import OnnxUnits
from elasticlm.model.prefix_layers import FeedForward, SelfAttention, bias_of
from elasticlm.model.structure import Structure

OPSET = 17
CONTRIB = "com.microsoft"  # ONNX Runtime's own operators
GELUS = {"gelu": "BiasGelu", "gelu_new": "FastGelu", "gelu_pytorch_tanh": "FastGelu"}


@dataclass(frozen=True)
class Calibration:
    """What real texts show of the blocks (attention and feed-forward network) of a level, for its int8 graph.

    Attributes:
        inputs: smallest and largest value in each channel of a block's input, FloatTensors [dim].
        in_fp32: neurons of a feed-forward network that stay in fp32.
    """

    inputs: Mapping[nn.Module, tuple[Tensor, Tensor]]
    in_fp32: Mapping[nn.Module, Sequence[int]]


@torch.no_grad()
def build_graph(
    encoder: ElasticEncoder,
    structure: Structure,
    activation: str,
    *,
    precision: str = "fp32",
    calibration: Calibration | None = None,
) -> onnx.ModelProto:
    """Return the graph of the submodel ``structure``.

    Args:
        encoder: holds the weights; only its prefixes are copied.
        activation: the configuration's hidden_act.
        precision: "fp32" or "int8".
        calibration: for int8; without one, vectors in int8 are less accurate.

    Raises InputError on an activation that has no fast operator.
    """
    if activation not in (known := (*GELUS, "relu", "silu")):
        raise InputError(f"backend onnx: hidden_act {activation!r} is not supported, only {', '.join(known)}")
    graph = GraphBuilder(int8=precision == "int8", calibration=calibration)
    family = encoder.family
    hidden = family.onnx_input(graph, EMBEDDINGS, encoder.embeddings)
    context = family.onnx_context(graph, encoder)
    for layer, heads, neurons in zip(encoder.layers, structure.heads, structure.neurons, strict=True):
        hidden = family.onnx_layer(graph, hidden, context, layer, OnnxUnits(heads, neurons, activation))
    return graph.finish(family.onnx_output(graph, hidden, encoder.final), encoder.words.embedding_dim)


@dataclass(frozen=True)
class Hidden:
    """Hidden states, as what a node computes and a bias [dim] to be added; whoever takes them in adds it to its own."""

    name: str
    bias: Tensor


class GraphBuilder:
    """Nodes and weights as they are added; every method returns the name of its result."""

    FLOAT = TensorProto.FLOAT

    def __init__(self, *, int8: bool, calibration: Calibration | None = None) -> None:
        self._int8, self._calibration = int8, calibration
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._unpadded = self.node("Cast", self.node("ReduceMin", MASK, keepdims=0), to=TensorProto.BOOL)
        self._batch_and_tokens = self.node("Shape", MASK)
        self._shapes: dict[int, str] = {}
        count = self.node("ReduceProd", self._batch_and_tokens, keepdims=1)
        self._ones, self._zeros = (
            self.node("ConstantOfShape", count, value=numpy_helper.from_array(np.full(1, value, np.float32)))
            for value in (1, 0)
        )

    def node(self, op: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: Any) -> Any:
        names = [f"{op}_{len(self._nodes)}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(op, list(inputs), names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, array: np.ndarray) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def linear(self, x: str, weight: Tensor, bias: Tensor | None, reach: Tensor | None = None) -> str:
        """x W^T + b; weight [out, in] as in PyTorch. Without a bias, whoever comes next adds it.

        Args:
            reach: see _reach(); x and the weight are then scaled by channel.
        """
        if reach is not None:
            scales = channel_scales(reach, weight)
            x, weight = self.node("Mul", x, self.constant(_array(1 / scales))), weight * scales
        columns = _array(weight).T
        given = [] if bias is None or not bias.any() else [self.constant(_array(bias))]
        if self._int8:
            quantised, by_column = quantise_columns(columns)
            zeros = np.zeros(len(by_column), np.int8)
            constants = [self.constant(array) for array in (quantised, by_column, zeros)]
            return self.node("DynamicQuantizeMatMul", x, *constants, *given, domain=CONTRIB)
        product = self.node("MatMul", x, self.constant(columns))
        return self.node("Add", product, *given) if given else product

    def _reach(self, x: Hidden, block: nn.Module) -> Tensor | None:
        """The largest absolute value in each channel of a block's input, which lacks its bias here [dim].

        None in fp32 and without calibration.
        """
        if not self._int8 or self._calibration is None:
            return None
        smallest, largest = (values - x.bias for values in self._calibration.inputs[block])
        return torch.maximum(smallest.abs(), largest.abs())

    def positions(self) -> str:
        """Positions of the tokens, int64 [tokens]."""
        zero, one = (self.constant(np.array(value)) for value in (0, 1))
        return self.node("Range", zero, self.node("Gather", self._batch_and_tokens, one), one)

    def project(self, x: Hidden, linear: nn.Linear) -> Hidden:
        """Hidden states of another width, in fp32."""
        product = self.node("MatMul", x.name, self.constant(_array(linear.weight).T))
        return Hidden(product, bias_of(linear) + linear.weight @ x.bias)

    def plain(self, x: Hidden) -> Hidden:
        """Hidden states to which no bias is left to be added."""
        if not x.bias.any():
            return x
        return Hidden(self.node("Add", x.name, self.constant(_array(x.bias))), torch.zeros_like(x.bias))

    def add(self, x: Hidden, added: str) -> Hidden:
        """The sum with what a block gives."""
        return Hidden(self.node("Add", x.name, added), x.bias)

    def attention(
        self,
        x: Hidden,
        block: SelfAttention,
        heads: int,
        *,
        lacking: Tensor | None = None,
        logit_bias: str = "",
        rotary: tuple[str, str] | None = None,
    ) -> str:
        """Multi-head attention over the first heads, one product for queries, keys and values.

        Args:
            lacking: a bias that is added to the result, since the hidden states that it goes to lack it.
            logit_bias: float [1, heads or 1, tokens, tokens], added to the logits.
            rotary: cosine and sine of the angles by which queries and keys are rotated, float [tokens, head_size / 2].
        """
        out = bias_of(block.output) if lacking is None else bias_of(block.output) + lacking
        if heads == 0:
            return self.constant(_array(out))
        width = heads * block.head_size
        projections = (block.query, block.key, block.value)
        weight = torch.cat([linear.weight[:width] for linear in projections])
        bias = torch.cat([bias_of(linear)[:width] for linear in projections])
        packed = self.linear(x.name, weight, bias + weight @ x.bias, self._reach(x, block))
        queries, keys, values = self.node("Split", packed, self.constant(np.array([width] * 3)), outputs=3, axis=-1)
        if rotary is not None:
            start = self.constant(np.array([0]))
            queries, keys = (self.node("RotaryEmbedding", states, start, *rotary, domain=CONTRIB, num_heads=heads)
                             for states in (queries, keys))  # fmt: skip
        context = self._context([queries, keys, values], heads, logit_bias)
        return self.linear(context, block.output.weight[:, :width], out)

    def _context(self, states: list[str], heads: int, logit_bias: str) -> str:
        """Attention without a mask where nothing is padded: 20 to 30% faster."""

        def branch(name: str, mask: str) -> onnx.GraphProto:
            inputs = [*states, "", mask, logit_bias]
            attend = helper.make_node("MultiHeadAttention", inputs, [name], domain=CONTRIB, num_heads=heads)
            return helper.make_graph([attend], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

        number = len(self._nodes)
        branches = {"then_branch": branch(f"whole_{number}", ""), "else_branch": branch(f"masked_{number}", MASK)}
        return self.node("If", self._unpadded, **branches)

    def feed_forward(self, x: Hidden, block: FeedForward, kept: OnnxUnits, *, lacking: Tensor | None = None) -> str:
        """The feed-forward network over the first neurons, some of them apart and in fp32.

        Args:
            lacking: see attention().
        """
        out = bias_of(block.down) if lacking is None else bias_of(block.down) + lacking
        if kept.neurons == 0:
            return self.constant(_array(out))
        in_fp32 = self._calibration.in_fp32[block] if self._calibration else ()
        others = [neuron for neuron in range(kept.neurons) if neuron not in set(in_fp32)]
        if not in_fp32 or not others:
            return self._neurons(x, block, range(kept.neurons), kept.activation, out)
        sums = self._neurons(x, block, others, kept.activation, out)
        int8, self._int8 = self._int8, False
        apart = self._neurons(x, block, in_fp32, kept.activation, None)
        self._int8 = int8
        return self.node("Add", sums, apart)

    def _neurons(self, x: Hidden, block: FeedForward, rows: Sequence[int], activation: str, bias: Tensor | None) -> str:
        """What these neurons add up to."""
        chosen, reach = list(rows), self._reach(x, block)

        def raised(linear: nn.Linear) -> tuple[Tensor, Tensor]:
            weight = linear.weight[chosen]
            return weight, bias_of(linear)[chosen] + weight @ x.bias

        weight, own = raised(block.up)
        if block.gate is None:
            active = self._active(self.linear(x.name, weight, None, reach), own, activation)
        else:
            gate_weight, gate_bias = raised(block.gate)
            packed = self.linear(x.name, torch.cat([weight, gate_weight]), None, reach)
            halves = self.constant(np.array([len(chosen)] * 2))
            up, gate = self.node("Split", packed, halves, outputs=2, axis=-1)
            if gate_bias.any():
                gate = self.node("Add", gate, self.constant(_array(gate_bias)))
            active = self.node("Mul", self._active(up, own, activation), gate)
        return self.linear(active, block.down.weight[:, chosen], bias)

    def _active(self, x: str, bias: Tensor, activation: str) -> str:
        added = self.constant(_array(bias))
        if activation == "relu":
            return self.node("Relu", self.node("Add", x, added))
        if activation == "silu":
            return self.node("QuickGelu", self.node("Add", x, added), domain=CONTRIB, alpha=1.0)
        return self.node(GELUS[activation], x, added, domain=CONTRIB)

    def normalise(self, x: str, norm: nn.LayerNorm) -> Hidden:
        """LayerNorm as InstanceNormalization of tokens for channels; its bias is left to whoever takes the states in.

        ONNX Runtime 1.32 has no vectorised LayerNormalization for a CPU: 8 x 128 x 384 take 1.6 ms, and 0.2 like this.
        """
        width = norm.normalized_shape[0]
        if width not in self._shapes:
            self._shapes[width] = self.node("Concat", self._batch_and_tokens, self.constant(np.array([width])), axis=0)
        tokens = self.node("Reshape", x, self.constant(np.array([1, -1, width])))
        scaled = self.node("InstanceNormalization", tokens, self._ones, self._zeros, epsilon=norm.eps)
        scaled = self.node("Mul", self.node("Reshape", scaled, self._shapes[width]), self.constant(_array(norm.weight)))
        return Hidden(scaled, bias_of(norm))

    def finish(self, hidden: Hidden, embedding_width: int) -> onnx.ModelProto:
        """The graph with its inputs, of which the embeddings have this width, and its one output."""
        self.node("Add", hidden.name, self.constant(_array(hidden.bias)))
        self._nodes[-1].output[:] = [HIDDEN]
        widths = {EMBEDDINGS: embedding_width, HIDDEN: len(hidden.bias)}
        states = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", width])
                  for name, width in widths.items()]  # fmt: skip
        mask = helper.make_tensor_value_info(MASK, TensorProto.INT32, ["batch", "tokens"])
        graph = helper.make_graph(self._nodes, "level", [states[0], mask], [states[1]], self._constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="elasticlm")


def channel_scales(reach: Tensor, weight: Tensor) -> Tensor:
    """Return what the channels of an input are divided by, and those of the weight multiplied by, before quantisation.

    Inputs share one scale. If a few channels reach far beyond the others, as in MPNet, these lose their precision;
    dividing by the scales leaves half of the difference (in the logarithm) to the weight, whose columns have scales of
    their own. This is SmoothQuant (Xiao et al. 2023) with alpha = 0.5.

    Args:
        reach: largest absolute value in each channel, FloatTensor [in].
        weight: FloatTensor [out, in].
    """
    scales = (reach.clamp_min(1e-4) / weight.abs().amax(0).clamp_min(1e-4)).sqrt()
    return (scales / scales.median()).clamp(1e-2, 1e2)


def quantise_columns(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantise a matrix to int8, symmetrically and with a scale for each column.

    Args:
        weight: FloatArray [in, out].

    Returns:
        Int8Array [in, out] and scales, FloatArray [out]: weight is about their product.
    """
    scales = np.maximum(np.abs(weight).max(0), 1e-12) / 127
    return np.round(weight / scales).astype(np.int8), scales.astype(np.float32)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
