"""Objectives: their losses against the plain formulas, and cached representations against one big batch."""

import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
from families import tiny_teacher
from random_texts import make_texts
from torch.nn import functional as F

from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.teacher import load_model
from elasticlm.trainer.loop import accumulate_gradients
from elasticlm.trainer.objectives import base
from elasticlm.trainer.objectives.align import Align, align_losses
from elasticlm.trainer.objectives.base import reciprocal_ranks
from elasticlm.trainer.objectives.relations import Relations, relation_losses
from elasticlm.trainer.objectives.rerank import Rerank
from elasticlm.trainer.objectives.retrieve import Retrieve, contrastive_losses, in_batch
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.training_texts import TokenizedTexts

TEXTS = make_texts(24, seed=4)
PASSAGES = make_texts(40, seed=5, shortest=8, longest=20)


def make_retriever(folder, processes, *, chunk_size):
    model = ElasticModel.from_pretrained(folder)
    return Retrieve(
        model, TokenizedTexts.of(model, TEXTS, "query"), TokenizedTexts.of(model, PASSAGES, "passage"),
        positives=[[i, i + 1] if i % 5 == 0 else [i] for i in range(24)],
        negatives=np.arange(24)[:, None] % 8 + np.arange(25, 31),
        temperature=0.05, negatives_per_query=2, processes=processes, chunk_size=chunk_size, seed=0,
    )  # fmt: skip


def make_align(folder, teacher_folder, processes, *, chunk_size):
    model, teacher = ElasticModel.from_pretrained(folder), load_model(str(teacher_folder))
    passages = teacher.embed(PASSAGES, kind="passage")
    return Align(model, TokenizedTexts.of(model, TEXTS, "query"), teacher.embed(TEXTS), passages, temperature=0.05,
                 passages_per_step=30, processes=processes, chunk_size=chunk_size, seed=0)  # fmt: skip


def make_relations(folder, teacher_folder, processes, *, chunk_size):
    model, teacher = ElasticModel.from_pretrained(folder), load_model(str(teacher_folder))
    return Relations(model, teacher, TokenizedTexts.of(model, TEXTS, "query"), relation_heads=8, scale="sqrt",
                     processes=processes, chunk_size=chunk_size)  # fmt: skip


def make_reranker(folder, teacher_folder, processes, *, chunk_size):
    model = ElasticModel.from_pretrained(folder).with_head("score", seed=0)
    teacher = load_model(str(teacher_folder)).with_head("score", seed=1)
    queries, passages = (TokenizedTexts.to_join(model, texts, 30) for texts in (TEXTS, PASSAGES))
    negatives = np.arange(24)[:, None] % 8 + np.arange(25, 31)
    return Rerank(model, queries, passages, [[i] for i in range(24)], negatives, negatives_per_query=2,
                  teacher=teacher, processes=processes, chunk_size=chunk_size, seed=0)  # fmt: skip


def gradients(objective, rows, levels):
    losses = accumulate_gradients(objective, rows, 3, dict.fromkeys(levels, 1.0))
    return losses, {name: p.grad for name, p in objective.model.named_parameters() if p.grad is not None}


def greatest_difference(found, expected):
    assert found.keys() == expected.keys()
    return max((found[name] - expected[name]).abs().max().item() for name in found if found[name].numel())


@pytest.mark.parametrize("make", [make_align, make_relations, make_retriever])
def test_chunks_equal_one_big_batch(make, tiny_artifact, tiny_bert, processes):
    folders = (tiny_artifact,) if make is make_retriever else (tiny_artifact, tiny_bert)
    rows, levels = np.arange(20), (100, 50, 10)
    losses, big = gradients(make(*folders, processes, chunk_size=1000), rows, levels)
    chunked_losses, small = gradients(make(*folders, processes, chunk_size=3), rows, levels)
    assert max(gradient.abs().max() for gradient in big.values()) > 1e-2
    assert greatest_difference(small, big) < 1e-5
    assert chunked_losses == pytest.approx(losses, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("make", [make_align, make_reranker, make_retriever])
def test_texts_of_like_length_are_encoded_together_to_the_same_losses(
    make, tiny_artifact, tiny_bert, processes, monkeypatch
):
    folders = (tiny_artifact,) if make is make_retriever else (tiny_artifact, tiny_bert)
    whole, grouped = (make(*folders, processes, chunk_size=1000) for _ in range(2))
    counts, embed = [], type(whole.model.encoder.embeddings).forward

    def counting(self, input_ids, *rest, **named):
        counts[-1] += input_ids.numel()
        return embed(self, input_ids, *rest, **named)

    monkeypatch.setattr(type(whole.model.encoder.embeddings), "forward", counting)
    counts.append(0)
    losses, expected = gradients(whole, np.arange(20), (100, 10))
    monkeypatch.setattr(base, "GROUP_TOKENS", 24)
    counts.append(0)
    grouped_losses, found = gradients(grouped, np.arange(20), (100, 10))
    assert counts[1] < 0.8 * counts[0]
    assert greatest_difference(found, expected) < 1e-5
    assert grouped_losses == pytest.approx(losses, rel=1e-5, abs=1e-4)


class OneOfTwo(Processes):
    """One of two processes, played by two threads that meet in ``sum``."""

    def __init__(self, rank, shared, barrier):
        super().__init__("fp32")
        self.rank, self.count, self._shared, self._barrier = rank, 2, shared, barrier

    def sum(self, tensor):
        self._shared[self.rank] = tensor.detach().clone()
        self._barrier.wait(30)
        total = self._shared[0] + self._shared[1]
        self._barrier.wait(30)
        return total


@pytest.mark.parametrize("make", [make_align, make_relations, make_retriever])
def test_two_processes_equal_one(make, tiny_artifact, tiny_bert, processes):
    folders = (tiny_artifact,) if make is make_retriever else (tiny_artifact, tiny_bert)
    rows, levels = np.arange(19), (100, 50, 10)  # an odd number: the processes' shares differ
    losses, alone = gradients(make(*folders, processes, chunk_size=4), rows, levels)
    shared, barrier = [None, None], Barrier(2)

    objectives = [make(*folders, OneOfTwo(rank, shared, barrier), chunk_size=4) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        runs = pool.map(lambda objective: gradients(objective, rows, levels), objectives)
        (losses_0, first), (losses_1, second) = runs
    assert greatest_difference({name: first[name] + second[name] for name in first}, alone) < 1e-5
    assert greatest_difference(first, alone) > 1e-3
    assert losses_0 == losses_1 == pytest.approx(losses, rel=1e-5, abs=1e-4)


def test_retriever_gradient_equals_that_of_the_plain_loss(tiny_artifact, processes):
    objective = make_retriever(tiny_artifact, processes, chunk_size=1000)
    rows, levels = np.arange(20), (100, 50, 10)
    _, found = gradients(objective, rows, levels)

    plain = make_retriever(tiny_artifact, processes, chunk_size=1000)
    model = plain.model
    negatives = np.random.default_rng([0, 2, 3]).permuted(plain.negatives[rows], axis=1)[:, :2]
    among = sorted({plain.positives[row][0] for row in rows} | set(negatives.ravel().tolist()))
    passages = model(**plain.passages.inputs(np.array(among)), level=100)
    loss = 0.0
    for level in levels:
        scores = model(**plain.queries.inputs(rows), level=level) @ passages.T / 0.05
        for i, row in enumerate(rows):
            known = [p for p in plain.positives[row][1:] if p in among]
            kept = [column for column, p in enumerate(among) if p not in known]
            loss = loss - scores[i, kept].log_softmax(-1)[kept.index(among.index(plain.positives[row][0]))] / 60
    loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert greatest_difference(found, expected) < 1e-5


def test_in_batch_passages_stand_once_and_further_positives_are_excluded():
    rows, labels, excluded = in_batch([[7, 3], [3], [7], [5, 9]], negatives=[5, 1])
    assert rows.tolist() == [1, 3, 5, 7]
    assert labels.tolist() == [3, 1, 3, 2]
    assert excluded.tolist() == [[False, True, False, False], *[[False] * 4] * 3]


def test_contrastive_loss_leaves_excluded_passages_out():
    queries, passages = torch.eye(3)[:1], torch.eye(3)
    nothing = contrastive_losses(queries, passages, torch.tensor([0]), torch.tensor([[False, True, True]]), 1.0)
    one = contrastive_losses(queries, passages, torch.tensor([0]), torch.tensor([[False, True, False]]), 1.0)
    assert nothing.item() == 0
    assert one.item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_align_loss_is_the_divergence_plus_three_times_the_cosine_distance():
    random = torch.Generator().manual_seed(0)
    student, teacher, passages = (torch.randn(n, 8, generator=random, dtype=torch.float64) for n in (5, 5, 11))
    found = align_losses(student, teacher, passages, 0.5)
    for i in range(5):
        p = [math.exp(float(teacher[i] @ v) / 0.5) for v in passages]
        q = [math.exp(float(student[i] @ v) / 0.5) for v in passages]
        divergence = sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True))
        cosine = float(student[i] @ teacher[i]) / float(student[i].norm() * teacher[i].norm())
        assert found[i].item() == pytest.approx(divergence + 3 * (1 - cosine), rel=1e-6)
    assert align_losses(teacher, teacher, passages, 0.5).abs().max() < 1e-12


@pytest.mark.parametrize("scale", ["sqrt", "plain"])
def test_relation_loss_equals_the_formula_written_out(scale):
    random = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(3, 6, 12, generator=random, dtype=torch.float64) for _ in range(2))
    lengths, heads, width = [6, 3, 1], 4, 3
    mask = torch.tensor([[int(t < length) for t in range(6)] for length in lengths])
    found = relation_losses(teacher, student, mask, heads, scale)
    for i, length in enumerate(lengths):
        total = 0.0
        for head in range(heads):
            columns = slice(head * width, (head + 1) * width)
            theirs, ours = teacher[i, :length, columns], student[i, :length, columns]
            divisor = math.sqrt(width) if scale == "sqrt" else width
            p, q = ((x @ x.T / divisor).softmax(-1) for x in (theirs, ours))
            total += float((p * (p.log() - q.log())).sum())
        assert found[i].item() == pytest.approx(total / (heads * length), rel=1e-9)


def test_relation_loss_and_its_gradient_ignore_padding(tiny_artifact, tiny_bert, processes):
    short = make_relations(tiny_artifact, tiny_bert, processes, chunk_size=1000)
    row = int(np.argmin(short.lengths))
    (one,), (every,) = short.batches(np.array([row]), 0), short.batches(np.arange(24), 0)
    alone, together = short.losses(one, 50), short.losses(every, 50)[row]
    assert (alone[0] - together).abs() < 1e-5
    together.backward()
    assert all(p.grad.isfinite().all() for p in short.model.parameters() if p.grad is not None)


def test_relations_start_from_the_teachers_last_projections(tiny_artifact, tiny_bert, processes):
    objective = make_relations(tiny_artifact, tiny_bert, processes, chunk_size=1000)
    last = load_model(str(tiny_bert)).encoder.layers[-1].attention
    assert torch.equal(objective.extra["query"].weight, last.query.weight)
    assert torch.equal(objective.extra["value"].bias, last.value.bias)
    (batch,) = objective.batches(np.arange(3), 0)
    inputs = objective.texts.inputs(np.arange(3))
    teacher = objective.teacher
    before_last = teacher.encoder(**inputs, structure=teacher.structures[100], layers=2)
    assert (batch.teacher[1] - F.linear(before_last, last.key.weight, last.key.bias)).abs().max() < 1e-4


def test_align_compares_with_the_teachers_best_passages_and_others(tiny_artifact, tiny_bert, processes):
    objective = make_align(tiny_artifact, tiny_bert, processes, chunk_size=1000)
    teacher = load_model(str(tiny_bert)).embed(TEXTS[:2])
    (batch,), (later,) = objective.batches(np.arange(2), 0), objective.batches(np.arange(2), 1)
    assert torch.equal(batch.teacher, objective.targets[:2])
    assert len(batch.passages) == 30
    best = objective.passages[(teacher @ objective.passages.T).topk(8).indices.unique()]
    for found in (batch.passages, later.passages):
        assert len(torch.cat([found, best]).unique(dim=0)) == 30
    assert not torch.equal(batch.passages, later.passages)
    assert objective.losses(batch, 100).abs().max() < 1e-4  # level 100 starts as the teacher


def test_dev_rank_of_align_is_that_of_the_teachers_first_passage(tiny_artifact, tiny_bert, processes):
    objective = make_align(tiny_artifact, tiny_bert, processes, chunk_size=1000)
    (batch,) = objective.batches(np.arange(20), 0)
    losses, ranks = objective.measure(batch, 100)
    assert torch.equal(losses, objective.losses(batch, 100))
    assert ranks.tolist() == [1] * 20
    assert objective.measure(batch, 10)[1].mean() < 1


def test_reciprocal_ranks_end_at_ten():
    scores = torch.arange(12.0, 0, -1).repeat(3, 1)
    assert reciprocal_ranks(scores, torch.tensor([0, 9, 10])).tolist() == pytest.approx([1, 0.1, 0])


def test_ties_and_missing_numbers_count_against_the_label():
    scores = torch.tensor([[1.0, 1.0, 1.0], [2.0, 1.0, 2.0], [3.0, 1.0, 2.0], [float("nan"), 1.0, 2.0]])
    found = reciprocal_ranks(scores, torch.tensor([0, 0, 0, 0]))
    assert found.tolist() == pytest.approx([1 / 3, 1 / 2, 1, 1 / 3])


@pytest.mark.parametrize(("passages", "passages_per_step"), [(5, 4), (5, 2), (40, 2), (40, 9)])
def test_few_passages_per_step_are_no_more_than_were_asked_for(tiny_artifact, tiny_bert, passages, passages_per_step):
    objective = make_align(tiny_artifact, tiny_bert, Processes(), chunk_size=8)
    objective.passages, objective.passages_per_step = objective.passages[:passages], passages_per_step
    (batch,) = objective.batches(np.arange(8), step=0)
    assert batch.passages.shape == (passages_per_step, 32)
    assert objective.losses(batch, 10).isfinite().all()


def test_relations_of_a_pre_norm_teacher_are_those_behind_the_norm(tmp_path, processes):
    theirs = tiny_teacher("modernbert", tmp_path)
    teacher = load_model(tmp_path)
    texts = TokenizedTexts.of(teacher, ["how does ice form", "the river"], "passage")
    objective = Relations(teacher, teacher, texts, relation_heads=4, scale="sqrt", processes=processes, chunk_size=2)
    (batch,) = objective.batches(np.arange(2), 0)
    seen = []
    theirs.layers[-1].attn.Wqkv.register_forward_hook(lambda module, given, output: seen.append(output))
    with torch.no_grad():
        theirs(**batch.inputs)
    real = batch.inputs["attention_mask"].bool()
    max_diff = (torch.cat(batch.teacher, dim=-1) - seen[0])[real].abs().max()
    assert max_diff < 1e-5, max_diff
