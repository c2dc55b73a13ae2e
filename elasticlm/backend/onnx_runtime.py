"""ONNX Runtime: one graph per level, sessions side by side, word embeddings held once. Needs onnxruntime to run.

    onnx/PRECISION/LEVEL.onnx   in the artifact folder, see elasticlm.backend.onnx_graph
    onnx/PRECISION/export.json  SHA-256 of the weights that they were made from, and how near they come to PyTorch

Weights of the layers are repeated in every level (of seven levels from 100 to 5%, 2.3 times those of the largest
alone); in int8 all of them are smaller than the largest level in fp32.
"""

import ctypes
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from elasticlm.backend import PRECISIONS, SPLIT_FROM
from elasticlm.backend.graph_hashes import check_hashes, graphs_folder, listed
from elasticlm.errors import InputError
from elasticlm.files import sha256_file
from elasticlm.model.encoder import ElasticEncoder
from elasticlm.model.folder import TEACHER_FILE, WEIGHTS_FILE
from elasticlm.model.structure import Level, Structure, level_name

EXPORT_FILE = "export.json"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
EMBEDDINGS, MASK, HIDDEN = "embeddings", "attention_mask", "hidden"


def installed() -> bool:
    """Whether ONNX Runtime is there."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return False
    return True


def is_exported(artifact: str | Path, precision: str) -> bool:
    """Whether an artifact has graphs of a precision and ONNX Runtime is there to run them."""
    return installed() and has_graphs(artifact, precision)


def has_graphs(artifact: str | Path, precision: str) -> bool:
    """Whether an artifact has graphs of a precision."""
    return (graphs_folder(artifact, precision) / EXPORT_FILE).is_file() and listed(artifact, precision) != {}


def check_precision(precision: str) -> None:
    """Raise InputError unless there can be graphs of this precision."""
    if precision not in PRECISIONS["onnx"]:
        raise InputError(f"backend onnx: precision {precision!r}, expected {' or '.join(PRECISIONS['onnx'])}")


def check_export(artifact: str | Path, precision: str) -> None:
    """Raise InputError unless the artifact holds graphs of this precision as they were exported, from its weights."""
    check_precision(precision)
    file = graphs_folder(artifact, precision) / EXPORT_FILE
    how = f"make them with `elasticlm export --model {artifact} --onnx {precision}`"
    if not file.is_file():
        raise InputError(f"{artifact}: has no ONNX graphs in {precision}; {how}")
    check_hashes(artifact, precision, how)
    if json.loads(file.read_text("utf-8"))["weights_sha256"] != sha256_weights(artifact):
        raise InputError(f"{file.parent}: made from other weights than {WEIGHTS_FILE} holds now; {how}")


def sha256_weights(artifact: str | Path) -> str:
    """What identifies the weights that graphs are made from: the SHA-256 of their file, or of both files' joined."""
    files = [Path(artifact) / name for name in (WEIGHTS_FILE, TEACHER_FILE)]
    return "+".join(sha256_file(file) for file in files if file.is_file())


class OnnxBackend:
    """Runs exported graphs on the CPU.

    Args:
        folder: holds a graph LEVEL.onnx for each level.
        encoders: the encoder of each level to load; its embeddings are shared, not copied.
        threads: of each session; they sleep while another works.

    Raises InputError where onnxruntime is missing or a graph cannot be read.
    """

    name = "onnx"
    device = "cpu"

    def __init__(
        self, folder: Path, encoders: Mapping[Level, tuple[ElasticEncoder, Structure]], *, precision: str, threads: int
    ) -> None:
        if not installed():
            raise InputError("backend onnx needs onnxruntime: pip install 'elasticlm[onnx]'")
        import onnxruntime

        self.precision = precision
        self._embedding_sums = {level: encoder.family.embedding_sum(encoder.embeddings)
                                for level, (encoder, _) in encoders.items()}  # fmt: skip
        _keep_freed_memory()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_cpu_mem_arena = False  # an arena a session would keep what its largest batch took; no slower
        options.enable_mem_pattern = False  # a pattern per shape of a batch would be kept for ever; no slower
        self._sessions = {}
        for level in encoders:
            file = folder / f"{level_name(level)}.onnx"
            try:
                self._sessions[level] = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime raises kinds of its own
                raise InputError(f"{file}: ONNX Runtime cannot load it ({str(error).splitlines()[0]})") from None

    @torch.inference_mode()
    def hidden(self, inputs: Mapping[str, Tensor], level: Level) -> Tensor:
        """Hidden states [batch, tokens, dim] of a tokenised batch at a level."""
        ids, types = inputs["input_ids"].numpy(), inputs.get("token_type_ids")
        summed = self._embedding_sums[level](ids, None if types is None else types.numpy())
        mask = inputs["attention_mask"].numpy().astype(np.int32)
        return torch.from_numpy(self._run(summed, mask, level))

    def _run(self, embeddings: np.ndarray, mask: np.ndarray, level: Level) -> np.ndarray:
        """Run a batch; a long one that is padded as rows of equal length, each without its padding.

        One thread is as fast on one long row as on many, and attention without a mask needs a fraction of the memory:
        20 rows of 90 to 300 tokens take 0.3 to 0.5 of the time, 8 of 80 to 140 take 0.7 to 0.9. Below 64 tokens it does
        not pay.
        """
        lengths = mask.sum(1)
        tokens = mask.shape[1]
        long_and_padded = tokens >= SPLIT_FROM and lengths.min() < tokens
        if not long_and_padded or (mask != (np.arange(tokens) < lengths[:, None])).any():  # the latter: not at the end
            return self._call(embeddings, mask, level)
        dim = self._sessions[level].get_outputs()[0].shape[-1]  # embeddings may be narrower
        hidden = np.zeros((*mask.shape, dim), embeddings.dtype)
        for length in np.unique(lengths):
            rows = lengths == length
            hidden[rows, :length] = self._call(embeddings[rows, :length], mask[rows, :length], level)
        return hidden

    def _call(self, embeddings: np.ndarray, mask: np.ndarray, level: Level) -> np.ndarray:
        (hidden,) = self._sessions[level].run([HIDDEN], {EMBEDDINGS: embeddings, MASK: mask})
        return hidden


def _keep_freed_memory() -> None:
    """Let glibc keep what a batch's activations took, for the next one; under another C library do nothing.

    The kernel would zero all of it again: of a worker's 79 ms at 8 x 128 tokens it took 20.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(M_TRIM_THRESHOLD, 256 * 2**20)
