"""ElasticModel: text in, tensors out, at any level."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from elasticlm.backend import BACKENDS, counted_tokens
from elasticlm.backend.graph_hashes import graphs_folder
from elasticlm.backend.onnx_runtime import OnnxBackend, check_export
from elasticlm.command import progress
from elasticlm.errors import InputError
from elasticlm.files import new_folder
from elasticlm.model import artifact
from elasticlm.model.batching import batches_by_length
from elasticlm.model.configuration import Calibration, ElasticConfig, Fusion, Head, MaxTokens, Passages
from elasticlm.model.download import download
from elasticlm.model.elastic_modules import ElasticModules
from elasticlm.model.folder import TEACHER_FILE
from elasticlm.model.heads import DENSE_PREFIX, HEAD_PREFIX, fresh_weights
from elasticlm.model.structure import WHOLE, ElasticStructure, Level
from elasticlm.model.tokenizing import PairTemplate, Tokenized, tokenize, tokenize_pairs

Kind = Literal["query", "passage"]

CHUNK_TOKENS = 8192
"""Tokens that a level runs on at once: 64 texts of 128 tokens, 16 of 512."""


class ElasticModel(ElasticModules):
    """An elastic encoder with its head and tokenizer.

    Examples:
        >>> model = ElasticModel.from_pretrained("out/aligned")      # doctest: +SKIP
        >>> model.embed(["how do glaciers form?"], level=10).shape   # doctest: +SKIP
        torch.Size([1, 384])
    """

    def __init__(self, config: ElasticConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(config)
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        backend: str = "torch",
        precision: str = "fp32",
        threads: int = 1,
    ) -> "ElasticModel":
        """Load an artifact from a folder, or by its name from the Hugging Face hub.

        Args:
            backend: "torch", or "onnx" for graphs that ``elasticlm export --onnx`` made: the layers' weights are then
                in the graphs alone, and the model can neither be trained nor cut.
            precision: of the graphs, "fp32" or "int8".
            threads: of ONNX Runtime.

        Raises InputError, in one line, on whatever is wrong with it.
        """
        if backend not in BACKENDS:
            raise InputError(f"backend {backend!r}: expected {' or '.join(BACKENDS)}")
        folder = download(str(name_or_path), revision=revision)
        config = artifact.read_config(folder)
        model = cls.without_weights(config, artifact.read_tokenizer(folder))
        if backend == "onnx":
            model.encoder.layers = nn.ModuleList()
        weights = artifact.read_weights(folder, model.state_dict(), others=backend == "onnx")
        model.load_state_dict(weights, assign=True)
        if model.structures.top:
            whole = ElasticStructure({WHOLE: config.whole})
            teacher = cls.without_weights(_with_levels(config, whole), model.tokenizer)
            if backend == "onnx":
                teacher.encoder.layers = nn.ModuleList()
            weights = artifact.read_weights(folder, teacher.state_dict(), others=backend == "onnx", name=TEACHER_FILE,
                                            known=model.state_dict())  # fmt: skip
            teacher.load_state_dict(weights, assign=True)
            model.set_top(teacher)
        if backend == "onnx":
            model.run_onnx(folder, precision=precision, threads=threads)
        return model

    def run_onnx(self, folder: str | Path, *, precision: str = "fp32", threads: int = 1) -> None:
        """Let ONNX Runtime run the levels from now on, by the graphs in this artifact folder.

        Raises InputError where onnxruntime or the graphs are missing, or the graphs are those of other weights.
        """
        check_export(folder, precision)
        self.backend = OnnxBackend(graphs_folder(folder, precision), self.encoders, precision=precision,
                                   threads=threads)  # fmt: skip

    @classmethod
    def without_weights(cls, config: ElasticConfig, tokenizer: PreTrainedTokenizerBase) -> "ElasticModel":
        """A model on the meta device, for ``load_state_dict(weights, assign=True)``."""
        with torch.device("meta"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # layers that keep no unit
            return cls(config, tokenizer)

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the artifact folder; it exists whole or not at all."""
        with new_folder(folder, overwrite=overwrite) as temporary:
            self.config.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)
            artifact.write_weights(temporary, self.state_dict())
            if self.top is not None:
                own = artifact.differing(self.top.state_dict(), self.state_dict())
                artifact.write_weights(temporary, own, TEACHER_FILE)

    def cut(
        self,
        structures: ElasticStructure,
        head_order: np.ndarray | None = None,
        neuron_order: np.ndarray | None = None,
    ) -> "ElasticModel":
        """Return a new model with these structures, its units taken from this one's largest level in the given order.

        Where this model has a teacher on top, units come from its largest nested level.

        Args:
            structures: the new levels; with a teacher on top, that is this model's, or this model itself.
            head_order: unit indices [layers, heads], best first; None keeps the order (and cuts prefixes).
            neuron_order: the same for neurons [layers, neurons].
        """
        if self.top is not None and structures.levels == (WHOLE,):
            return self.top.cut(structures)
        config = _with_levels(self.config, structures)
        nested = structures.nested
        largest, weights = nested[nested.largest], self.state_dict()
        for i in range(largest.layers):
            heads = np.arange(largest.heads[i]) if head_order is None else head_order[i, : largest.heads[i]]
            neurons = np.arange(largest.neurons[i]) if neuron_order is None else neuron_order[i, : largest.neurons[i]]
            entries = (heads[:, None] * config.head_size + np.arange(config.head_size)).ravel()
            units = {kind: torch.from_numpy(rows)
                     for kind, rows in (("heads", entries), ("head", heads), ("neurons", neurons))}  # fmt: skip
            for part, (kind, axis) in self.encoder.family.unit_axes.items():
                if (name := f"encoder.layers.{i}.{part}") in weights:
                    weights[name] = weights[name].index_select(axis, units[kind])
        model = self.without_weights(config, self.tokenizer)
        model.load_state_dict({name: weight.clone() for name, weight in weights.items()}, assign=True)
        if structures.top:
            whole = self if self.top is None else self.top
            model.set_top(whole.cut(ElasticStructure({WHOLE: config.whole})))
        return model

    def with_head(self, task: str, labels: Sequence[str] | None = None, *, seed: int = 0) -> "ElasticModel":
        """Return a new model with this one's encoder and a fresh head for a task: "score", or "classify" with labels.

        For the head's weights see elasticlm.model.heads.fresh_weights. A teacher on top is left out: it has no such
        head.
        """
        config = _with_levels(self.config, self.structures.nested)
        config.task, config.head, config.passages = task, Head("linear", tuple(labels or ())), Passages()
        config.calibration, config.fusion, config.dense = Calibration(), Fusion(), ()
        config.max_tokens = MaxTokens(*[config.max_tokens.pair] * 3)
        after = (HEAD_PREFIX, DENSE_PREFIX)
        kept = {name: weight for name, weight in self.state_dict().items() if not name.startswith(after)}
        weights = {name: weight.clone() for name, weight in kept.items()} | fresh_weights(config, seed=seed)
        model = self.without_weights(config, self.tokenizer)
        model.load_state_dict(weights, assign=True)
        return model

    def fingerprint(self) -> str:
        """What identifies the vectors of passages at the largest level, see elasticlm.model.artifact.fingerprint."""
        largest = self.at(self.structures.largest)
        assert len(largest.encoder.layers) == self.config.num_hidden_layers, "loaded for ONNX Runtime, without layers"
        return artifact.fingerprint(largest)

    def weights_fingerprint(self) -> str:
        """What identifies all weights but the heads, for runs that start from them."""
        models: list[ElasticModel] = [self, *self._top]
        return "+".join(map(artifact.fingerprint, models))

    def has_fingerprint(self, stored: str | None) -> bool:
        """Whether a stored fingerprint, of this format or an older one, is that of this model."""
        return stored is not None and artifact.has_fingerprint(self.at(self.structures.largest), stored)

    def tokenize(self, texts: Sequence[str], kind: Kind = "query") -> Tokenized:
        """Return input_ids and attention_mask, LongTensors [batch, tokens], padded to the longest.

        Families that use token types get token_type_ids [batch, tokens] too.
        The prompt of ``kind`` is put before each text; texts over its length limit are cut (see Tokenized.cut).
        """
        limit, prompt = self.config.max_tokens.of(kind), self.config.prompts.of(kind)
        return tokenize(self.tokenizer, texts, limit, prompt=prompt, types=self.uses_token_types).on(self.device)

    def tokenize_pairs(self, firsts: Sequence[str], seconds: Sequence[str] | None) -> Tokenized:
        """Like tokenize(), for pairs of texts (or single ones), without prompts.

        A reranker cuts queries and passages to their own length limits before it joins them.
        """
        limits = self.config.max_tokens
        if seconds is None:
            return tokenize(self.tokenizer, firsts, limits.pair, types=self.uses_token_types).on(self.device)
        text_limits = (limits.query, limits.passage) if self.config.task == "score" else None
        return tokenize_pairs(self.tokenizer, self.pair_template, firsts, seconds, limits.pair,
                              text_limits=text_limits, types=self.uses_token_types).on(self.device)  # fmt: skip

    @property
    def positions(self) -> int:
        """Tokens of the longest input that the encoder has positions for."""
        return self.encoder.family.longest(self.config)

    @cached_property
    def uses_token_types(self) -> bool:
        """Whether the encoder has token types and the tokenizer gives them, as Hugging Face's call decides it."""
        return self.encoder.family.uses_token_types and "token_type_ids" in self.tokenizer.model_input_names

    @cached_property
    def pair_template(self) -> PairTemplate:
        """How the tokenizer joins pairs."""
        return PairTemplate.of(self.tokenizer)

    @property
    def longest(self) -> int:
        """Tokens of the longest input of the model's task: a query, or a pair of texts."""
        limits = self.config.max_tokens
        if self.config.task == "embed":
            return limits.query
        if self.config.task == "classify":
            return limits.pair
        return min(limits.pair, self.pair_template.longest(limits.query, limits.passage))

    @torch.inference_mode()
    def encode(self, inputs: Mapping[str, Tensor], level: Level) -> Tensor:
        """Run one level on a tokenised batch through the backend, without gradients. For serving and measuring.

        Batches of more than CHUNK_TOKENS, padding included, are run in parts, so that the memory that they need is
        bounded.
        """
        rows, tokens = inputs["attention_mask"].shape
        model = self.at(level)
        if rows * tokens <= CHUNK_TOKENS or rows == 1:
            return model.finish(self.backend.hidden(inputs, level), inputs["attention_mask"])
        lengths = inputs["attention_mask"].sum(1).tolist()
        parts = [torch.from_numpy(part) for part in batches_by_length(lengths, max_tokens=CHUNK_TOKENS)]
        outputs = []
        for part in parts:
            longest = max(lengths[row] for row in part.tolist())
            chunk = {name: tensor[part, :longest] for name, tensor in inputs.items()}
            outputs.append(model.finish(self.backend.hidden(chunk, level), chunk["attention_mask"]))
        return torch.cat(outputs)[torch.cat(parts).argsort()]

    def counted(self, inputs: Mapping[str, Tensor]) -> tuple[int, int]:
        """Rows and tokens that a tokenised batch counts as for a latency table of this backend."""
        lengths = inputs["attention_mask"].sum(1).tolist()
        return len(lengths), counted_tokens(self.backend.name, lengths)

    def embed(
        self,
        texts: Sequence[str],
        *,
        level: Level | None = None,
        kind: Kind = "query",
        batch_size: int = 32,
        show_progress: bool = False,
    ) -> Tensor:
        """Embed texts at a level (None: the largest).

        Returns:
            FloatTensor [texts, vector_size] on the CPU, in the order of the texts. Batches are formed by length in
            characters.
        """
        self._require("embed")
        level = self.structures.largest if level is None else level
        vectors = torch.empty(len(texts), self.config.vector_size)
        bar = progress(total=len(texts), desc=f"embed {kind} at {level}", unit="text") if show_progress else None
        for rows in batches_by_length([len(text) for text in texts], max_rows=batch_size):
            batch = [texts[row] for row in rows.tolist()]
            vectors[rows] = self.encode(self.tokenize(batch, kind), level).float().cpu()
            if bar is not None:
                bar.update(len(batch))
        if bar is not None:
            bar.close()
        return vectors

    def score(self, query: str, passages: Sequence[str], *, level: Level | None = None) -> Tensor:
        """Score a query against passages at a level; higher is more relevant. Returns FloatTensor [passages]."""
        self._require("score")
        inputs = self.tokenize_pairs([query] * len(passages), passages)
        return self.encode(inputs, self.structures.largest if level is None else level).float().cpu()

    def probabilities(self, scores: Tensor, level: Level) -> Tensor | None:
        """How likely passages with these scores at this level are relevant; None where the level is not calibrated.

        sigmoid(a score + b), the same scale at every level (see ``elasticlm evaluate --calibrate``).
        """
        fitted = self.config.calibration.of(level)
        return None if fitted is None else torch.sigmoid(fitted[0] * scores + fitted[1])

    def fusion_weight(self, level: Level) -> float:
        """The weight of a first stage's scores at this level, 0 unless fitted: elasticlm.retrieval.score_fusion."""
        return self.config.fusion.of(level)

    def classify(
        self, sentences: Sequence[str], seconds: Sequence[str] | None = None, *, level: Level | None = None
    ) -> Tensor:
        """Classify sentences or sentence pairs at a level. Returns logits, FloatTensor [sentences, labels]."""
        self._require("classify")
        inputs = self.tokenize_pairs(sentences, seconds)
        return self.encode(inputs, self.structures.largest if level is None else level).float().cpu()

    def _require(self, task: str) -> None:
        if self.config.task != task:
            raise InputError(f"this model's task is {self.config.task!r}, not {task!r}")


def _with_levels(config: ElasticConfig, structures: ElasticStructure) -> ElasticConfig:
    """Copy a configuration, with other levels; what was fitted for levels that go goes with them."""
    config = copy.deepcopy(config)
    config.levels = structures.to_json()
    config.calibration, config.fusion = config.calibration.only(config.levels), config.fusion.only(config.levels)
    return config
