"""Read what sentence-transformers writes next to a model: pooling, Dense modules, normalisation, prompts and lengths.

Files in the model's folder:

    modules.json                         the modules in order, each with its type and folder
    FOLDER/config.json of Pooling        the pooling
    FOLDER/config.json of Dense          sizes, bias and activation; the weights are next to it
    sentence_bert_config.json            length limit, lower-casing
    config_sentence_transformers.json    prompts
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from elasticlm.command import say
from elasticlm.errors import InputError
from elasticlm.model.configuration import DenseLayer, MaxTokens, Prompts
from elasticlm.model.heads import DENSE_PREFIX

POOLINGS = {"cls_token": "cls", "cls": "cls", "mean_tokens": "mean", "mean": "mean"}
"""Their names for a pooling (after ``pooling_mode_``) and ours."""
ACTIVATIONS = {"Identity": "linear", "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "Sigmoid": "sigmoid",
               "SiLU": "silu"}  # fmt: skip
"""Classes of torch.nn that a Dense module may name, and ours."""
QUERY_PROMPTS, PASSAGE_PROMPTS = ("query",), ("document", "passage", "corpus")
"""Names under which sentence-transformers looks for the prompt of a query and of a passage; the first counts."""
TRANSFORMERS = ("Transformer", "BERT")
"""Types of the module with the encoder; the second is the oldest format's."""


@dataclass(frozen=True)
class SentenceFiles:
    """The files of sentence-transformers in a model's folder; a folder without them is an encoder and a tokenizer.

    Attributes:
        folder: the model's.
        modules: type and folder of each module, in order; empty where there is no modules.json.

    Raises InputError on modules that are not supported, or in an order that is not.
    """

    folder: Path
    modules: tuple[tuple[str, Path], ...]

    @classmethod
    def of(cls, folder: Path) -> "SentenceFiles":
        file = folder / "modules.json"
        try:
            modules = [(str(module["type"]).rsplit(".", 1)[-1], folder / module["path"])
                       for module in read_json(file, [])]  # fmt: skip
        except (TypeError, KeyError):
            raise InputError(f'{file}: expected [{{"type": ..., "path": ...}}, ...]') from None
        kinds = ["Transformer" if kind in TRANSFORMERS else kind for kind, _ in modules]
        if unknown := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Dense", "Normalize")]:
            raise InputError(f"{file}: a {unknown[0]} module is not supported")
        dense = kinds.count("Dense")
        orders = [["Transformer", "Pooling", *["Dense"] * dense, *end] for end in ([], ["Normalize"])]
        if kinds not in ([], ["Transformer"], *orders):
            raise InputError(f"{file}: modules {', '.join(kinds)} are not supported in this order, "
                             "only Transformer, Pooling, Dense, Normalize")  # fmt: skip
        return cls(folder, tuple(zip(kinds, (path for _, path in modules), strict=True)))

    @property
    def transformer(self) -> Path:
        """The folder of the encoder and the tokenizer."""
        return next(iter(self._paths("Transformer")), self.folder)

    @property
    def pools(self) -> bool:
        """Whether the files say how hidden states become a vector."""
        return bool(self._paths("Pooling"))

    @property
    def lower_cases(self) -> bool:
        """Whether texts are lower-cased before they are tokenised."""
        return bool(self._sentence.get("do_lower_case"))

    def fields(self, longest: int) -> dict[str, Any]:
        """Return the fields of ElasticConfig that the files decide, ``pooling`` only where they do (see ``pools``).

        Args:
            longest: length limit of the encoder and its tokenizer, in tokens.

        Raises InputError on poolings and activations that are not supported.
        """
        limit = min(self._sentence.get("max_seq_length") or longest, longest)
        fields = {
            "normalize": bool(self._paths("Normalize")),
            "dense": [self._dense(path) for path in self._paths("Dense")],
            "prompts": self._prompts(),
            "max_tokens": MaxTokens(query=limit, passage=limit, pair=longest),
        }
        poolings = [self._pooling(path) for path in self._paths("Pooling")]
        return fields | ({"pooling": poolings[0]} if poolings else {})

    def check_prompts(self, prompts: Prompts, pooling: str) -> None:
        """Raise InputError where prompts are to be left out of the mean, which is taken over all tokens."""
        for path in self._paths("Pooling"):
            file = path / "config.json"
            if pooling == "mean" and prompts != Prompts() and read_object(file).get("include_prompt") is False:
                raise InputError(f"{file}: include_prompt false is not supported with a prompt: the mean is taken over "
                                 "the prompt too")  # fmt: skip

    def dense_weights(self) -> dict[str, Tensor]:
        """Return the weights of the Dense modules in fp32, under their names in an artifact."""
        weights = {}
        for i, path in enumerate(self._paths("Dense")):
            layer = self._dense(path)
            own = read_tensors(path)
            for name in ("weight", "bias")[: 1 + layer.bias]:
                if f"linear.{name}" not in own:
                    raise InputError(f"{path}: no weights for 'linear.{name}'")
                weights[f"{DENSE_PREFIX}{i}.{name}"] = own[f"linear.{name}"].float()
        return weights

    @property
    def _sentence(self) -> Mapping[str, Any]:
        return read_object(self.transformer / "sentence_bert_config.json")

    def _paths(self, kind: str) -> list[Path]:
        return [path for each, path in self.modules if each == kind]

    def _pooling(self, path: Path) -> str:
        file = path / "config.json"
        settings = read_object(file)
        on = [key for key, value in settings.items() if key.startswith("pooling_mode") and value]
        mode = str(settings.get("pooling_mode", ",".join(on)))
        pooling = POOLINGS.get(mode.removeprefix("pooling_mode_"))
        if pooling is None:
            raise InputError(f"{file}: pooling {mode!r} is not supported, only cls or mean")
        return pooling

    def _dense(self, path: Path) -> DenseLayer:
        file = path / "config.json"
        settings = read_json(file, None)
        if not isinstance(settings, Mapping):
            raise InputError(f"{file}: expected the sizes of a Dense module")
        activation = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh")).rsplit(".", 1)[-1]
        if activation not in ACTIVATIONS:
            raise InputError(f"{file}: activation_function {activation!r} is not supported, only "
                             f"{', '.join(ACTIVATIONS)}")  # fmt: skip
        sizes = {name: settings.get(name) for name in ("in_features", "out_features", "bias") if name in settings}
        return DenseLayer.from_json(sizes | {"activation": ACTIVATIONS[activation]}, str(file))

    def _prompts(self) -> Prompts:
        """The prompts that sentence-transformers puts before queries and passages."""
        file = self.folder / "config_sentence_transformers.json"
        settings = read_object(file)
        prompts = settings.get("prompts") or {}
        if not (isinstance(prompts, Mapping) and all(isinstance(text, str) for text in prompts.values())):
            raise InputError(f"{file}: prompts: expected names with their texts")
        default = prompts.get(settings.get("default_prompt_name"), "")
        query, passage = (next((prompts[name] for name in names if name in prompts), default)
                          for names in (QUERY_PROMPTS, PASSAGE_PROMPTS))  # fmt: skip
        if any(prompts.values()) and not query and not passage:
            say(f"warning: {file}: none of its prompts ({', '.join(prompts)}) is used; choose with --query-prompt "
                "and --passage-prompt")  # fmt: skip
        return Prompts(query, passage)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a module's folder. Raises InputError where there are none or they cannot be read."""
    try:
        if (file := folder / "model.safetensors").is_file():
            return safetensors.torch.load_file(file)
        if (file := folder / "pytorch_model.bin").is_file():
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # both libraries raise many kinds
        raise InputError(f"{file}: its weights cannot be read ({error})") from None
    raise InputError(f"{folder}: no weights (model.safetensors or pytorch_model.bin)")


def read_object(file: Path) -> Mapping[str, Any]:
    """Return the JSON object in a file, empty if there is no such file. Raises InputError on other content."""
    value = read_json(file, {})
    if not isinstance(value, Mapping):
        raise InputError(f"{file}: expected a JSON object")
    return value


def read_json(file: Path, default: Any) -> Any:
    """Return the value in a JSON file, or ``default`` if there is no such file. Raises InputError on other content."""
    if not file.is_file():
        return default
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error})") from None
