"""A level as an ONNX graph of its own, made of the operators for which ONNX Runtime has fast kernels on a CPU.

    inputs   embeddings      float [batch, tokens, dim], the sum of the family's embeddings, not normalised yet
             attention_mask  int32 [batch, tokens], 1 for tokens and 0 for padding
    output   hidden          float [batch, tokens, dim]

Word embeddings are not part of the graph: all levels share them (see elasticlm.backend.onnx_runtime). In int8, each
column of a weight matrix has a scale, and each activation one scale and zero point per batch, computed at run time
(dynamic quantisation). A few neurons of each layer reach many times the values of all others (in MiniLM 28 compared
with 6) and would determine the scale alone: these stay in fp32.
"""

from collections.abc import Sequence
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
from elasticlm.model.prefix_layers import FeedForward, SelfAttention
from elasticlm.model.structure import Structure

OPSET = 17
CONTRIB = "com.microsoft"  # ONNX Runtime's own operators
GELUS = {"gelu": "BiasGelu", "gelu_new": "FastGelu", "gelu_pytorch_tanh": "FastGelu"}


@torch.no_grad()
def build_graph(
    encoder: ElasticEncoder,
    structure: Structure,
    activation: str,
    *,
    precision: str = "fp32",
    in_fp32: Sequence[Sequence[int]] | None = None,
) -> onnx.ModelProto:
    """Return the graph of the submodel ``structure``.

    Args:
        encoder: holds the weights; only its prefixes are copied.
        activation: the configuration's hidden_act.
        precision: "fp32" or "int8".
        in_fp32: of int8, each layer's neurons that stay in fp32.

    Raises InputError on an activation that has no fast operator.
    """
    if activation not in (*GELUS, "relu"):
        raise InputError(f"backend onnx: hidden_act {activation!r} is not supported, only {', '.join(GELUS)} and relu")
    graph = GraphBuilder(int8=precision == "int8")
    family = encoder.family
    hidden = family.onnx_input(graph, EMBEDDINGS, encoder.embeddings)
    context = family.onnx_context(graph, encoder)
    apart = in_fp32 or [()] * structure.layers
    kept = zip(encoder.layers, structure.heads, structure.neurons, apart, strict=True)
    for index, (layer, heads, neurons, outliers) in enumerate(kept):
        hidden = family.onnx_layer(graph, hidden, context, layer, index=index, heads=heads, neurons=neurons,
                                   activation=activation, in_fp32=outliers)  # fmt: skip
    return graph.finish(family.onnx_output(graph, hidden, encoder.final))


@dataclass(frozen=True)
class Hidden:
    """Hidden states, as what a node computes and a bias [dim] to be added; whoever takes them in adds it to its own."""

    name: str
    bias: Tensor


class GraphBuilder:
    """Nodes and weights as they are added; every method returns the name of its result."""

    def __init__(self, *, int8: bool) -> None:
        self._int8 = int8
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._unpadded = self.node("Cast", self.node("ReduceMin", MASK, keepdims=0), to=TensorProto.BOOL)
        self._shape = self.node("Shape", EMBEDDINGS)
        count = self.node("ReduceProd", self.node("Shape", MASK), keepdims=1)
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

    def linear(self, x: str, weight: Tensor, bias: Tensor | None) -> str:
        """x W^T + b; weight [out, in] as in PyTorch. Without a bias, whoever comes next adds it."""
        columns = _array(weight).T
        given = [] if bias is None else [self.constant(_array(bias))]
        if self._int8:
            quantised, scales = quantise_columns(columns)
            zeros = np.zeros(len(scales), np.int8)
            constants = [self.constant(array) for array in (quantised, scales, zeros)]
            return self.node("DynamicQuantizeMatMul", x, *constants, *given, domain=CONTRIB)
        product = self.node("MatMul", x, self.constant(columns))
        return self.node("Add", product, *given) if given else product

    def attention(self, x: Hidden, block: SelfAttention, heads: int) -> str:
        """Multi-head attention over the first heads, one product for queries, keys and values; and x's bias."""
        out = block.output.bias + x.bias
        if heads == 0:
            return self.constant(_array(out))
        width = heads * block.head_size
        projections = (block.query, block.key, block.value)
        weight = torch.cat([linear.weight[:width] for linear in projections])
        bias = torch.cat([linear.bias[:width] for linear in projections])
        packed = self.linear(x.name, weight, bias + weight @ x.bias)
        queries, keys, values = self.node("Split", packed, self.constant(np.array([width] * 3)), outputs=3, axis=-1)
        context = self._context([queries, keys, values], heads)
        return self.linear(context, block.output.weight[:, :width], out)

    def _context(self, states: list[str], heads: int) -> str:
        """Attention without a mask where nothing is padded: 20 to 30 % faster."""

        def branch(name: str, *mask: str) -> onnx.GraphProto:
            attend = helper.make_node("MultiHeadAttention", [*states, *mask], [name], domain=CONTRIB, num_heads=heads)
            return helper.make_graph([attend], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

        number = len(self._nodes)
        branches = {"then_branch": branch(f"whole_{number}"), "else_branch": branch(f"masked_{number}", "", MASK)}
        return self.node("If", self._unpadded, **branches)

    def feed_forward(
        self, x: Hidden, block: FeedForward, neurons: int, activation: str, in_fp32: Sequence[int] = ()
    ) -> str:
        """The feed-forward network over the first neurons, some of them apart and in fp32; and x's bias."""
        out = block.down.bias + x.bias
        if neurons == 0:
            return self.constant(_array(out))
        others = [neuron for neuron in range(neurons) if neuron not in set(in_fp32)]
        if not in_fp32 or not others:
            return self._neurons(x, block, range(neurons), activation, out)
        sums = self._neurons(x, block, others, activation, out)
        int8, self._int8 = self._int8, False
        apart = self._neurons(x, block, in_fp32, activation, None)
        self._int8 = int8
        return self.node("Add", sums, apart)

    def _neurons(self, x: Hidden, block: FeedForward, rows: Sequence[int], activation: str, bias: Tensor | None) -> str:
        """What these neurons add up to."""
        chosen = list(rows)
        raised = self.linear(x.name, block.up.weight[chosen], None)
        own = self.constant(_array(block.up.bias[chosen] + block.up.weight[chosen] @ x.bias))
        if activation == "relu":
            active = self.node("Relu", self.node("Add", raised, own))
        else:
            active = self.node(GELUS[activation], raised, own, domain=CONTRIB)
        return self.linear(active, block.down.weight[:, chosen], bias)

    def normalise(self, x: str, norm: nn.LayerNorm) -> Hidden:
        """LayerNorm as InstanceNormalization of tokens for channels; its bias is left to whoever takes the states in.

        ONNX Runtime 1.32 has no vectorised LayerNormalization for a CPU: 8 x 128 x 384 take 1.6 ms, and .2 like this.
        """
        tokens = self.node("Reshape", x, self.constant(np.array([1, -1, norm.normalized_shape[0]])))
        scaled = self.node("InstanceNormalization", tokens, self._ones, self._zeros, epsilon=norm.eps)
        scaled = self.node("Mul", self.node("Reshape", scaled, self._shape), self.constant(_array(norm.weight)))
        return Hidden(scaled, norm.bias)

    def finish(self, hidden: Hidden) -> onnx.ModelProto:
        """The graph with its inputs and its one output."""
        self.node("Add", hidden.name, self.constant(_array(hidden.bias)))
        self._nodes[-1].output[:] = [HIDDEN]
        dim = len(hidden.bias)
        states = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", dim])
                  for name in (EMBEDDINGS, HIDDEN)]  # fmt: skip
        mask = helper.make_tensor_value_info(MASK, TensorProto.INT32, ["batch", "tokens"])
        graph = helper.make_graph(self._nodes, "level", [states[0], mask], [states[1]], self._constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="elasticlm")


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
