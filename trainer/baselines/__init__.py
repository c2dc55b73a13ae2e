"""The systems that the paper compares with, on the loop, the data and the evaluation of all others.

Each is a small module with its source in the docstring; ``elasticlm baseline NAME`` trains it. Task-specific systems
wrap a task's objective, which gives them batches and the loss by labels; task-agnostic ones train on plain text.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Baseline:
    """How a system is trained.

    Attributes:
        module: in this package.
        kind: class of its objective there.
        tasks: of ``elasticlm finetune`` that it can be trained for; none: it is trained on plain text.
    """

    module: str
    kind: str
    tasks: tuple[str, ...]
    summary: str


BASELINES = {
    "kd": Baseline("kd", "KnowledgeDistillation", ("classify", "rerank"), "match a fine-tuned teacher's logits"),
    "dynabert": Baseline("dynabert", "DynaBert", ("classify",), "submodels of several widths and depths, trained "
                         "together to match logits and hidden states"),
    "moebert": Baseline("moebert", "MoeBert", ("classify",), "experts in place of feed-forward networks, each token "
                        "routed to one, layer-wise distillation"),
    "early-exit": Baseline("early_exit", "EarlyExit", ("classify", "retrieve"), "exits behind several layers"),
    "simtinybert": Baseline("simtinybert", "SimTinyBert", ("classify", "rerank"), "hidden states, attention, logits "
                            "and labels in one stage"),
    "tinybert": Baseline("tinybert", "TinyBert", (), "match the teacher's hidden states and attention layer by layer"),
    "minilm": Baseline("minilm", "MiniLm", (), "match the relations of the teacher's last layer by those of the "
                       "student's own"),
    "lm-distil": Baseline("masked_lm", "LmDistillation", (), "match the teacher's predictions of masked words"),
    "lm-head": Baseline("masked_lm", "LmHead", (), "train a masked language model head on a teacher without one"),
    "condenser": Baseline("condenser", "Condenser", (), "pretrain a teacher further, with a Condenser head"),
    "condenser-head": Baseline("condenser", "CondenserHeadRelations", (), "keep the relations of a Condenser head "
                               "instead of the teacher's own last layer"),
}  # fmt: skip
