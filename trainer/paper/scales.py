"""At which scale the paper's tables are made: teachers, data, and how much of everything."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import yaml

from elasticlm.errors import InputError
from elasticlm.hints import near_match

FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The settings of a scale, as small.yaml and paper.yaml have them.

    Attributes:
        base, elasticbert, condenser, prop, large: the models in the places of BERT, ElasticBERT, Condenser, PROP and a
            large teacher; where none is given, Condenser is pretrained from the base, and the base takes the others'.
        text: data specs for task-agnostic distillation.
        structure: options of prune for the elastic structure.
        pretrain, distil, classify, retrieve, rerank: options of the training of each kind; ``tokens`` is the mean
            length of an example, for the estimate of time.
        grid: the settings of which GLUE's fine-tuning takes the best on a held-out part of train.
        glue, retrieval, reranking: data sets by the paper's column.
        simulation: figure 7.
        prop_distil: what differs in the distillation of rerankers.
        alone_levels: of figure 8, those that are trained alone too.
    """

    name: str
    description: str
    data: str | None
    base: str
    elasticbert: str | None
    condenser: str | None
    prop: str | None
    large: str
    lm_head: bool
    text: list[str]
    text_split: str
    exclude: list[str]
    structure: Mapping[str, Any]
    pretrain: Mapping[str, Any]
    distil: Mapping[str, Any]
    classify: Mapping[str, Any]
    retrieve: Mapping[str, Any]
    rerank: Mapping[str, Any]
    grid: list[Mapping[str, Any]]
    glue_epochs: int | None
    glue: Mapping[str, Mapping[str, Any]]
    retrieval: Mapping[str, Mapping[str, Any]]
    reranking: Mapping[str, Mapping[str, Any]]
    simulation: Mapping[str, Any]
    prop_distil: Mapping[str, Any]
    alone_levels: list[float]

    @classmethod
    def read(cls, name: str, assignments: Iterable[str] = ()) -> Self:
        """Read a scale, with some settings changed: ``data=DIR``, ``distil.max-steps=100``, ``glue.RTE=``.

        An empty value removes what has a name below a setting. Raises InputError on what the scale does not have.
        """
        content = {"name": name, **yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8"))}
        for assignment in assignments:
            _assign(content, assignment)
        missing = {field.name for field in fields(cls)} ^ set(content)
        assert not missing, missing
        if content["data"] is None and "{data}" in str(content):
            raise InputError(f"the scale {name} needs --set data=DIR, the folder with its data sets")
        return cls(**_filled(content, content["data"]))


def _assign(content: dict[str, Any], assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    if not equals:
        raise InputError(f"--set {assignment}: expected key=value, such as distil.max-steps=100")
    *parents, last = key.split(".")
    inner: Any = content
    for part in (*parents, last):
        if not isinstance(inner, dict) or (part not in inner and part != last):
            raise InputError(f"--set {assignment}: no setting {key!r}{near_match(part, inner)}")
        if part != last:
            inner = inner[part]
    if not parents and last not in inner:
        raise InputError(f"--set {assignment}: no setting {key!r}{near_match(key, inner)}")
    if not text and parents:
        inner.pop(last, None)
    else:
        inner[last] = yaml.safe_load(text)


def _filled(value: Any, data: str | None) -> Any:
    if isinstance(value, str):
        return value.replace("{data}", str(data))
    if isinstance(value, Mapping):
        return {key: _filled(inner, data) for key, inner in value.items()}
    return [_filled(inner, data) for inner in value] if isinstance(value, list) else value
