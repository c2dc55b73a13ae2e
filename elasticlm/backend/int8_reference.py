"""Whether int8 answers as well on this machine as where it was exported.

Integer kernels differ between processors: without VNNI they may saturate (onnxruntime issue 6004), so graphs that are
good on one machine can be bad on another. An export in int8 therefore keeps some texts, the answers of PyTorch to them
in fp32, and how far int8 was from these:

    onnx/int8/reference.safetensors   one FloatTensor [texts, outputs] per level: vectors, scores or logits
        metadata: texts, seconds (of pairs), limits (by level)

The error of a level is ||int8 - fp32|| / ||fp32|| over all texts; for vectors of length 1 it is sqrt(2 - 2 cosine). The
limit is 1.5 times the error at export, and at least 0.02, because rounding alone differs between machines.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from elasticlm.backend import Backend
from elasticlm.errors import InputError
from elasticlm.model.structure import Level, level_name

if TYPE_CHECKING:
    from elasticlm.model.elastic_model import ElasticModel

REFERENCE_FILE = "reference.safetensors"
TEXTS, LONG_TEXTS = 16, 8  # of a reference: queries, and passages
TEXTS_AT_ONCE = 8  # activations share one scale per batch, so batches are part of the reference
MARGIN, LEAST_LIMIT = 1.5, 0.02


@dataclass(frozen=True)
class Reference:
    """Texts with the answers in fp32, and the error that int8 may have.

    Attributes:
        seconds: the second texts of pairs, for rerankers and classifiers; None for vectors.
        answers: FloatTensors [texts, outputs] in fp32, by the level's name.
        limits: by the level's name.
    """

    texts: Sequence[str]
    seconds: Sequence[str] | None
    answers: Mapping[str, Tensor]
    limits: Mapping[str, float]

    @classmethod
    def of(cls, model: "ElasticModel", int8: Backend, texts: Sequence[str], passages: Sequence[str]) -> Self:
        """Return the reference of a model that runs in fp32 and of its graphs in int8.

        Args:
            texts: queries.
            passages: longer texts, such as a passage for each query; other queries take their place where there are
                none.
        """
        queries, longer = list(texts[:TEXTS]), list(passages or texts[1:] or texts)
        paired = model.config.task != "embed"
        firsts = queries if paired else [*queries, *longer[:LONG_TEXTS]]
        seconds = (longer * TEXTS)[: len(queries)] if paired else None
        levels = model.levels
        answers = {level_name(level): _answers(model, model.backend, firsts, seconds, level) for level in levels}
        found = {level_name(level): _answers(model, int8, firsts, seconds, level) for level in levels}
        limits = {name: max(LEAST_LIMIT, MARGIN * _error(found[name], answers[name])) for name in answers}
        return cls(firsts, seconds, answers, limits)

    def write(self, folder: Path) -> None:
        """Write the file into a folder of graphs."""
        metadata = {name: json.dumps(getattr(self, name)) for name in ("texts", "seconds", "limits")}
        safetensors.torch.save_file(dict(self.answers), folder / REFERENCE_FILE, metadata)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the file of a folder of graphs; None where an older export has none."""
        file = folder / REFERENCE_FILE
        if not file.is_file():
            return None
        try:
            with safetensors.safe_open(file, framework="pt") as tensors:
                names, metadata = tensors.keys(), tensors.metadata()
                answers = {name: tensors.get_tensor(name) for name in names}
                return cls(answers=answers, **{name: json.loads(text) for name, text in metadata.items()})
        except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:
            raise InputError(f"{file}: not a reference of an export ({error})") from None

    def error(self, model: "ElasticModel", level: Level) -> float:
        """Return the error of a level with the model's backend; not a number where its answers are not finite."""
        wanted = self.answers[level_name(level)]
        return _error(_answers(model, model.backend, self.texts, self.seconds, level), wanted)


def _answers(
    model: "ElasticModel", backend: Backend, texts: Sequence[str], seconds: Sequence[str] | None, level: Level
) -> Tensor:
    """Return vectors, scores or logits, FloatTensor [texts, outputs]."""
    outputs = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        batch = slice(start, start + TEXTS_AT_ONCE)
        inputs = model.tokenize(texts[batch]) if seconds is None else model.tokenize_pairs(texts[batch], seconds[batch])
        with torch.inference_mode():
            outputs.append(model.at(level).finish(backend.hidden(inputs, level), inputs["attention_mask"]))
    return torch.cat(outputs).float().reshape(len(texts), -1).clone()


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())
