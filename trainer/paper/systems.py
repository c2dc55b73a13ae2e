"""The systems of the paper's tables as commands of elasticlm: what is pruned, distilled, fine-tuned and measured.

Paths are the identity of what is made: a teacher, a distilled student or a fine-tuned model that several rows or tables
need is made once.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from elasticlm.trainer.paper.jobs import Job, Jobs, chosen
from elasticlm.trainer.paper.scales import Scale
from elasticlm.trainer.paper.shapes import Shape, Sizes

TRAINED = 3  # a forward and a backward pass cost three forward passes


class Lab:
    """Adds the jobs that make each system, and returns where their outputs will be.

    Args:
        max_steps: of every training, instead of the scale's own.
    """

    def __init__(self, scale: Scale, jobs: Jobs, max_steps: int | None = None) -> None:
        self.scale, self.jobs, self._max_steps = scale, jobs, max_steps
        self.folder = jobs.folder

    @cached_property
    def base(self) -> Sizes:
        """The base encoder's sizes."""
        return Sizes.read(self.scale.base)

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """The elastic levels, largest first."""
        return tuple(map(float, str(self.scale.structure["levels"]).split(",")))

    def passes(self, role: str) -> float:
        """A forward pass of a teacher, in passes of the base encoder."""
        return Sizes.read(self.scale.large).gflops / self.base.gflops if role == "large" else 1.0

    # -- Teachers and structures ---------------------------------------------------------------------------------------

    def teacher(self, role: str) -> str:
        """A pretrained teacher by its role: bert, elasticbert, condenser, prop, large."""
        scale = self.scale
        if role == "large":
            return scale.large
        if role == "condenser":
            return scale.condenser or str(self._condenser())
        if role in ("prop", "elasticbert") and getattr(scale, role):
            return getattr(scale, role)
        return str(self._pretrained("lm-head", scale.base)) if scale.lm_head else scale.base

    def pruned(self, role: str) -> Path:
        """The elastic structure, by BERT's masked words, in this teacher's weights."""
        return self._pruned(f"pruned_{role}", role, **self.scale.structure)

    def student(self, shape: Shape, role: str = "bert") -> Path:
        """A structure by layers and width, with random weights."""
        width = {} if shape.width == self.base.width else {"width": shape.width}
        options = {"layers": shape.layers, **width} | ({} if width else {"fresh-weights": True})
        return self._pruned(f"student_{shape}", role, **options)

    def _pruned(self, name: str, role: str, **options: Any) -> Path:
        levels = {"score-loss": "mlm"} if "levels" in options else {}
        if levels and role != "bert":
            levels["score-model"] = self.teacher("bert")
        options = {"teacher": self.teacher(role), "data": self.scale.text, "split": self.scale.text_split,
                   **levels, **options}  # fmt: skip
        return self._job("prune", self.folder / "shared" / name, options)

    def _condenser(self) -> Path:
        """BERT's stand-in pretrained with a Condenser head, which checkpoints on the hub come without."""
        return self._pretrained("condenser", self.teacher("bert"))

    def _pretrained(self, baseline: str, model: str) -> Path:
        """A teacher trained further on text, whole."""
        cost = 1.0 if baseline == "lm-head" else 2 * TRAINED
        return self._on_text(baseline, self.folder / "shared" / baseline, {"model": model}, self.scale.pretrain, cost)

    # -- Task-agnostic distillation ------------------------------------------------------------------------------------

    def distilled(self, role: str, level: float | None = None, *, start: Path | None = None, variant: str = "") -> Path:
        """Every level, or one alone, distilled by relations from a teacher.

        Args:
            start: the model to start from, instead of the pruned teacher.
            variant: "head": from the relations of the teacher's Condenser head.
        """
        teacher = str(self._condenser()) if variant == "head" else self.teacher(role)
        model = start or self.pruned("bert" if role == "large" else role)
        name = f"{role}{'_' + variant if variant else ''}{'_from_' + start.name if start else ''}"
        shares = sum(self.levels) / 100
        if level is not None:
            model, name, shares = self._alone(model, level), f"{name}_{level:g}", level / 100
        command = "condenser-head" if variant == "head" else None
        stage = {**self.scale.distil, **(self.scale.prop_distil if role == "prop" else {})}
        return self._on_text(command, self.folder / "distilled" / name, {"model": model, "teacher": teacher}, stage,
                             shares * TRAINED + self.passes(role))  # fmt: skip

    def small_student(self, system: str, shape: Shape) -> Path:
        """A student by layers and width that a task-agnostic system has distilled from BERT.

        Args:
            system: tinybert, minilm, lm-distil, or relations, ElasticLM's own objective (table 9).
        """
        name = f"{system}_{shape}"
        options = {"model": self.student(shape), "teacher": self.teacher("bert")}
        cost = shape.share(self.base) * TRAINED + 1
        return self._on_text(None if system == "relations" else system, self.folder / "distilled" / name, options,
                             self.scale.distil, cost)  # fmt: skip

    def _alone(self, model: Path, level: float) -> Path:
        output = model.with_name(f"{model.name}_only_{level:g}")
        return self._job("export", output, {"model": model, "level": f"{level:g}"})

    def _on_text(
        self, baseline: str | None, output: Path, options: Mapping[str, Any], stage: Mapping[str, Any], cost: float
    ) -> Path:
        data = {"data": self.scale.text, "split": self.scale.text_split}
        return self._training(baseline or "distil", output, {**options, **data}, stage, cost)

    # -- GLUE ----------------------------------------------------------------------------------------------------------

    def glue_teacher(self, column: str) -> str:
        """BERT fine-tuned for a set."""
        return self._classified(column, "teacher", {"model": self.teacher("bert")}, TRAINED)

    def classifier(self, column: str, name: str, model: Path, shares: float) -> tuple[str, Path]:
        """A distilled model fine-tuned for a set; returns it and its evaluation."""
        found = self._classified(column, name, {"model": model}, shares * TRAINED)
        return found, self.classified(column, name, found)

    def kd(self, column: str, level: float) -> Path:
        """KD's evaluation at a level: the pruned structure alone, the fine-tuned teacher's logits."""
        model = self._alone(self.pruned("bert"), level)
        found = self._classified(column, f"kd_{level:g}", {"model": model, "teacher": self.glue_teacher(column)},
                                 level / 100 * TRAINED + 1, baseline="kd")  # fmt: skip
        return self.classified(column, f"kd_{level:g}", found)

    def dynabert(self, column: str, levels: Sequence[float]) -> dict[float, Path]:
        """DynaBERT's evaluations: width first, then width and depth with that network as the teacher."""
        shares = sum(levels) / 100 + 1
        listed, depths = (
            ("100", *(f"{level:g}" for level in levels)),
            ("1", *("1" if k >= 50 else "0.67" for k in levels)),
        )
        width = self._classified(
            column, "dynabert_width", {"model": self.ranked_teacher(column), "teacher": self.glue_teacher(column),
                                       "levels": ",".join(dict.fromkeys(["100", "50", listed[-1]]))},
            (1.5 + levels[-1] / 100) * TRAINED + 1, baseline="dynabert")  # fmt: skip
        inner = self._inner(width, "100")
        both = self._classified(column, "dynabert", {"model": inner, "teacher": inner, "levels": ",".join(listed),
                                                     "depths": ",".join(depths)},
                                shares * TRAINED + 1, baseline="dynabert")  # fmt: skip
        return {
            level: self.classified(column, f"dynabert_{level:g}", self._inner(both, f"{level:g}")) for level in levels
        }

    def moebert(self, column: str, level: float) -> Path:
        """MoEBERT's evaluation, which its training makes."""
        found = self._classified(
            column, f"moebert_{level:g}", {"model": self.ranked_teacher(column), "teacher": self.glue_teacher(column),
                                           "level": f"{level:g}", "evaluate": self._splits(column)},
            level / 100 * TRAINED + 1, baseline="moebert")  # fmt: skip
        return Path(self._inner(found, f"{self._set(column)['split']}.json"))

    def early_exit(self, column: str, exits: Sequence[int]) -> dict[int, Path]:
        """The evaluations of exits behind so many layers, fixed to that compute."""
        exits = tuple(sorted({*exits, self.base.layers}))
        found = self._classified(column, "early_exit", {"model": self.teacher("elasticbert"),
                                                        "exits": ",".join(map(str, exits))},
                                 sum(exits) / self.base.layers * TRAINED, baseline="early-exit")  # fmt: skip
        return {
            count: self.classified(column, f"early_exit_{count}", self._inner(found, str(count))) for count in exits
        }

    def ranked_teacher(self, column: str) -> Path:
        """The fine-tuned teacher with a trained level 100, units in order of importance for the task."""
        options = {"teacher": self.glue_teacher(column), "data": self._set(column)["data"], "levels": "100,50",
                   "top": "shared", "max-examples": self.scale.structure["max-examples"]}  # fmt: skip
        return self._job("prune", self._glue_folder(column) / "ranked", options)

    def classified(self, column: str, name: str, model: str) -> Path:
        """Measure a classifier on a column's split, against BERT."""
        where = self._set(column)
        options = {"model": model, "teacher": self.glue_teacher(column), "data": where["data"], "split": where["split"]}
        return self._job("evaluate", self._glue_folder(column) / f"{name}.{where['split']}.json", options)

    def _classified(
        self, column: str, name: str, options: Mapping[str, Any], cost: float, *, baseline: str | None = None
    ) -> str:
        """Fine-tune with each setting of the grid; the folder of the best."""
        where, stage = self._set(column), self.scale.classify
        outputs, lengths = [], {key: where[key] for key in ("pair-tokens",) if key in where}
        for setting in self.scale.grid:
            steps = {}
            if self.scale.glue_epochs:
                steps = {"max-steps": -(-self.scale.glue_epochs * where["examples"] // setting["batch-size"])}
            suffix = "" if len(self.scale.grid) == 1 else f"_{setting['batch-size']}_{setting['lr']:g}"
            outputs.append(self._training(
                baseline or "finetune", self._glue_folder(column) / f"{name}{suffix}",
                {"task": "classify", **options, **lengths, "data": where["data"]}, {**stage, **steps, **setting}, cost,
            ))  # fmt: skip
        if len(outputs) == 1:
            return str(outputs[0])
        file = self._glue_folder(column) / f"{name}.chosen"
        self.jobs.add(Job("choose", tuple(map(str, outputs)), file))
        return chosen(file)

    def _glue_folder(self, column: str) -> Path:
        """MNLI's two columns have one training."""
        return self.folder / "glue" / self._set(column)["data"].rpartition("/")[2]

    def _splits(self, column: str) -> list[str]:
        return [where["split"] for where in self.scale.glue.values() if where["data"] == self._set(column)["data"]]

    def _set(self, column: str) -> Mapping[str, Any]:
        return self.scale.glue[column]

    # -- Retrieval and reranking ---------------------------------------------------------------------------------------

    def retriever(self, column: str, name: str, model: Path | str, shares: float) -> tuple[Path, Path]:
        """A model fine-tuned to retrieve; returns it and its evaluation, and writes its runs next to it."""
        output = self._found_folder("retrieval", column) / name
        found = self._fine_tuned("retrieve", self.scale.retrieval[column], output, {"model": model}, shares)
        return found, self.retrieved(column, name, found, passes=max(1.0, shares) if name == "large" else 1.0)

    def exits_that_retrieve(self, column: str, exits: Sequence[int]) -> dict[int, Path]:
        """Evaluations of queries encoded up to an exit; passages are encoded by all layers."""
        exits = tuple(sorted({*exits, self.base.layers}))
        where, output = self.scale.retrieval[column], self._found_folder("retrieval", column) / "early_exit"
        options = {"model": self.teacher("elasticbert"), "exits": ",".join(map(str, exits))}
        found = self._fine_tuned(
            "retrieve", where, output, options, sum(exits) / self.base.layers, baseline="early-exit"
        )
        whole = found / str(self.base.layers)
        return {
            count: self.retrieved(column, f"early_exit_{count}", found / str(count), teacher=whole) for count in exits
        }

    def retrieved(
        self, column: str, name: str, model: Path, *, teacher: Path | None = None, passes: float = 1.0
    ) -> Path:
        """Measure a retriever; a passage costs ``passes`` of the base encoder."""
        where = self.scale.retrieval[column]
        folder = self._found_folder("retrieval", column)
        options = {"model": model, "teacher": teacher or model, "data": where["data"], "split": where["split"],
                   "run-dir": folder / f"{name}.runs"}  # fmt: skip
        options |= {key: where[key] for key in ("corpus",) if key in where}
        cost = _passages(where["data"]) * self.scale.retrieve["tokens"] * passes
        return self._job("evaluate", folder / f"{name}.json", options, cost=cost)

    def run_of(self, column: str, name: str, level: float) -> Path:
        """The run of a retriever at a level, once it has been measured."""
        return self._found_folder("retrieval", column) / f"{name}.runs" / f"{level:g}.run"

    def reranker(
        self, column: str, name: str, options: Mapping[str, Any], shares: float, *, baseline: str | None = None
    ) -> Path:
        """A model fine-tuned to rerank."""
        where, output = self.scale.reranking[column], self._found_folder("reranking", column) / name
        run = {"run": where["train_run"]} if "train_run" in where else {}
        return self._fine_tuned("rerank", where, output, {**options, **run}, shares, baseline=baseline)

    def reranked(
        self, column: str, name: str, model: Path, *, run: Path | None = None, level: float | None = None
    ) -> Path:
        """Measure a reranker behind the column's first stage, or behind a retriever's run."""
        where = self.scale.reranking[column]
        options = {"model": model, "data": where["data"], "split": where["split"], "depth": where["depth"]}
        options |= {key: where[key] for key in ("max-queries",) if key in where}
        first = run or where.get("run")
        options |= ({"run": first} if first else {}) | ({"levels": f"{level:g}"} if level else {})
        return self._job("evaluate", self._found_folder("reranking", column) / f"{name}.json", options)

    def pairs(self, column: str, retriever: Path, ranker: Path) -> Path:
        """Measure every level of a reranker behind every level of a retriever, without fusion."""
        where = self.scale.reranking[column]
        options = {"model": ranker, "retriever": retriever, "matrix": True, "data": where["data"],
                   "split": where["split"], "depth": where["depth"]}  # fmt: skip
        options |= {key: where[key] for key in ("max-queries",) if key in where}
        return self._job("evaluate", self._found_folder("reranking", column) / "matrix.json", options)

    def archive(self, label: str, model: Path, tokens: int) -> Path:
        """A retriever with its latency table on this machine, packed for TorchServe; its table lies next to it."""
        folder = self.folder / "archives" / label
        self.jobs.add(Job("pack", (str(model), label, str(tokens)), folder))
        return folder / f"{label}.mar"

    def _fine_tuned(
        self, task: str, where: Mapping[str, Any], output: Path, options: Mapping[str, Any], shares: float, *,
        baseline: str | None = None,
    ) -> Path:  # fmt: skip
        stage = {**getattr(self.scale, task), **where.get("train", {})}
        return self._training(baseline or "finetune", output, {"task": task, **options, "data": where["data"]}, stage,
                              shares * TRAINED + (1.0 if baseline else 0.0))  # fmt: skip

    def _found_folder(self, kind: str, column: str) -> Path:
        return self.folder / kind / column.replace(" ", "_")

    # -- Jobs ----------------------------------------------------------------------------------------------------------

    def _training(
        self, command: str, output: Path, options: Mapping[str, Any], stage: Mapping[str, Any], cost: float
    ) -> Path:
        """A training; ``cost`` is in passes of the base encoder per example."""
        stage = dict(stage)
        tokens = stage.pop("tokens")
        if self._max_steps:
            stage |= {"max-steps": self._max_steps, "dev-examples": 8}
        passes = stage["max-steps"] * stage.get("batch-size", 32) * tokens * cost
        if command not in ("finetune", "distil"):
            options, command = {"": command, **options}, "baseline"
        excluded = {"exclude": self.scale.exclude} if self.scale.exclude else {}
        return self._job(command, output, {**options, **stage, **excluded}, cost=passes, steps=stage["max-steps"])

    def _job(
        self, command: str, output: Path, options: Mapping[str, Any], *, cost: float = 0.0, steps: int = 0
    ) -> Path:
        return self.jobs.add(Job(command, tuple(words({**options, "output": output})), output, cost, steps))

    def _inner(self, model: str, inner: str) -> str:
        """A folder or file inside what a training wrote, be it chosen or not."""
        return f"{model}{inner}" if model.endswith("::") else str(Path(model) / inner)


def _passages(spec: str) -> int:
    """The passages of a BEIR folder, for estimates; 0 of what is not a folder."""
    corpus = Path(spec.removeprefix("beir:")) / "corpus.jsonl"
    if not (spec.startswith("beir:") and corpus.is_file()):
        return 0
    with open(corpus, "rb") as lines:
        return sum(1 for _ in lines)


def words(options: Mapping[str, Any]) -> list[str]:
    """The words of a command line; "" is an argument without an option's name.

    >>> words({"": "kd", "data": ["a", "b"], "lr": 0.0001, "fresh-weights": True})
    ['kd', '--data', 'a', 'b', '--lr', '0.0001', '--fresh-weights']
    """
    found: list[str] = []
    for name, value in options.items():
        if name:
            found.append(f"--{name}")
        if value is not True:
            found += [str(each) for each in (value if isinstance(value, list | tuple) else [value])]
    return found
