"""Batches: every text once an epoch, like lengths together, the same for the same seed and step."""

import numpy as np
from random_texts import make_texts

from elasticlm.model.teacher import load_model
from elasticlm.trainer.training_texts import BatchOrder, TokenizedTexts, encode

TEXTS = make_texts(50, seed=6, shortest=2, longest=30)


def test_inputs_are_those_of_the_models_tokenizer(tiny_bert):
    teacher = load_model(str(tiny_bert))
    rows = np.array([3, 40, 7])
    found = TokenizedTexts.of(teacher, TEXTS, "query").inputs(rows)
    expected = teacher.tokenize([TEXTS[row] for row in rows])
    assert found["input_ids"].tolist() == expected["input_ids"].tolist()
    assert found["attention_mask"].tolist() == expected["attention_mask"].tolist()


def test_texts_are_cut_to_a_limit_and_keep_their_separator(tiny_bert):
    teacher = load_model(str(tiny_bert))
    texts = TokenizedTexts.of(teacher, TEXTS, "passage", max_tokens=6)
    assert texts.lengths.max() == 6
    longest = int(np.argmax([len(text) for text in TEXTS]))
    ids = texts.inputs(np.array([longest]))["input_ids"][0].tolist()
    assert ids[:5] == teacher.tokenize([TEXTS[longest]])["input_ids"][0, :5].tolist()
    assert ids[5] == teacher.tokenizer.sep_token_id


def _rows(texts):
    return np.split(np.asarray(texts.token_ids), np.cumsum(texts.lengths)[:-1])


def test_encode_keeps_the_order_of_the_texts(tiny_bert, processes):
    teacher = load_model(str(tiny_bert))
    found = encode(teacher, TokenizedTexts.of(teacher, TEXTS, "passage"), processes, batch_tokens=64)
    assert (found - teacher.embed(TEXTS, kind="passage")).abs().max() < 1e-5


def test_an_epoch_visits_every_row_once_and_another_order_follows():
    order = BatchOrder(np.arange(1, 41), batch_size=8, seed=0)
    first = np.concatenate([order.rows(step) for step in range(5)])
    second = np.concatenate([order.rows(step) for step in range(5, 10)])
    assert sorted(first) == sorted(second) == list(range(40))
    assert first.tolist() != second.tolist()


def test_batches_are_a_function_of_seed_and_step():
    lengths = np.random.default_rng(0).integers(4, 60, 1000)
    order = BatchOrder(lengths, batch_size=10, seed=3)
    wanted = {step: order.rows(step).tolist() for step in (0, 57, 99, 100, 250)}
    for step in (250, 0, 100, 57, 99):
        assert BatchOrder(lengths, 10, seed=3).rows(step).tolist() == wanted[step]
    assert BatchOrder(lengths, 10, seed=4).rows(0).tolist() != wanted[0]


def test_batches_hold_texts_of_like_lengths():
    lengths = np.random.default_rng(0).integers(4, 60, 1000)
    order = BatchOrder(lengths, batch_size=10, seed=0)
    padded = np.mean([lengths[order.rows(step)].max() for step in range(100)])
    assert padded < 1.1 * lengths.mean()
