"""Pairs of levels: which are worth running, what they take, what policies choose of them, their file."""

import json

import numpy as np
import pytest

from elasticlm.errors import InputError
from elasticlm.model.structure import Pair, level_name, parse_choice
from elasticlm.schedule.cascade import MeasuredPair, PairTable, pareto, read_pairs, write_pairs
from elasticlm.schedule.latency import Cell, LatencyTable
from elasticlm.schedule.load import Load
from elasticlm.schedule.policies import Fixed, parse_policy


def measured(retriever, reranker, quality, depth=4):
    return MeasuredPair(retriever=retriever, reranker=reranker, depth=depth, quality=quality, measure="RR@10")


RETRIEVER = LatencyTable.from_means({50: 8.0, 10: 2.0})
RERANKER = LatencyTable.from_means({50: 10.0, 10: 3.0})
PAIRS = [
    measured(50, 50, 0.70),  # 8 + 4 x 10 = 48 ms
    measured(10, 50, 0.66),  # 42
    measured(50, 10, 0.60),  # 20
    measured(10, 10, 0.61),  # 14: better than 50+10 and faster
    measured(50, None, 0.50),  # 8
    measured(10, None, 0.45),  # 2
]
TABLE = PairTable(PAIRS, RETRIEVER, RERANKER, passage_tokens=60, max_tokens=128)


def names(levels):
    return [level_name(level) for level in levels]


def test_a_pair_that_another_beats_in_quality_and_time_is_left_out():
    assert names(TABLE.levels) == ["50+50", "10+50", "10+10", "50", "10"]
    assert TABLE.mean_ms(Pair(50, 10)) == 20  # but it can be held fixed
    assert [TABLE.mean_ms(level) for level in TABLE.levels] == [48, 42, 14, 8, 2]


@pytest.mark.parametrize(
    ("points", "kept"),
    [
        ([(0.5, 10), (0.4, 10)], [0]),  # as fast, worse
        ([(0.5, 10), (0.5, 8)], [1]),  # as good, faster
        ([(0.5, 10), (0.6, 9), (0.4, 1)], [1, 2]),
        ([(0.5, 10)], [0]),
    ],
)
def test_of_equals_in_one_the_better_in_the_other_stays(points, kept):
    pairs = [measured(i + 1, None, quality) for i, (quality, _) in enumerate(points)]
    time_ms = {pair.levels: ms for pair, (_, ms) in zip(pairs, points, strict=True)}
    assert pareto(pairs, time_ms.__getitem__) == [pairs[i] for i in kept]


@pytest.mark.parametrize(
    ("depth", "queue", "slack"),
    [
        (0, "50+50", "50+50"),
        (1, "50+50", "10+50"),  # 2 x 48 <= 100, but not 90
        (2, "10+10", "10+10"),
        (7, "50", "50"),  # 8 x 8 <= 100
        (11, "50", "10"),  # 12 x 8 = 96
        (12, "10", "10"),
        (500, "10", "10"),
    ],
)
def test_policies_choose_the_best_pair_that_fits_as_they_choose_levels(depth, queue, slack):
    load = Load(queue_depth=depth)
    assert level_name(parse_policy("queue:t=100").choose(TABLE, load)) == queue
    assert level_name(parse_policy("slack:t=100,alpha=.9").choose(TABLE, load)) == slack


def test_an_old_request_gets_the_best_pair_that_still_answers_it_in_time():
    slack = parse_policy("slack:t=100,alpha=1")
    chosen = [slack.choose(TABLE, Load(ages_ms=(age,))) for age in (52.0, 53.0, 59.0, 87.0, 98.0)]
    assert names(chosen) == ["50+50", "10+50", "10+10", "50", "10"]


def cells(level, by_tokens):
    return [
        Cell(level=level, rows=rows, tokens=tokens, mean_ms=rows * ms, p50_ms=rows * ms, p95_ms=2 * rows * ms,
             p99_ms=None, runs=1)
        for rows in (1, 8) for tokens, ms in by_tokens.items()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "tokens", "ms"),
    [
        (1, 16, 1 + 0.5 + 4 * (2 + 10 * 12 / 64)),  # 16 + 60 = 76 tokens: 12/64 of the way from 64 to 128
        (2, 16, 2 * (1 + 0.5 + 4 * (2 + 10 * 12 / 64))),
        (1, None, 1 + 0.5 + 4 * (2 + 10 * 12 / 64)),
        (1, 100, 5 * 100 / 64 + 0.5 + 4 * 12),  # 160 tokens: cut to 128
    ],
)
def test_the_reranker_is_asked_for_the_whole_list_at_the_length_of_a_pair(rows, tokens, ms):
    retriever, reranker = LatencyTable(cells(50, {16: 1.0, 64: 5.0})), LatencyTable(cells(50, {64: 2.0, 128: 12.0}))
    table = PairTable([measured(50, 50, 0.5)], retriever, reranker, passage_tokens=60, max_tokens=128, search_ms=0.5)
    assert table.mean_ms(Pair(50, 50), rows, tokens) == pytest.approx(ms)
    assert ms < table.p95_ms(Pair(50, 50), rows, tokens) < 2 * ms - 0.5 * rows


@pytest.mark.parametrize(("text", "levels"), [("50+10", Pair(50, 10)), ("12.5+100", Pair(12.5, 100)), ("50", 50)])
def test_pairs_are_written_as_they_are_read(text, levels):
    assert parse_choice(text) == levels
    assert level_name(levels) == text
    assert parse_policy(f"fixed:{text}") == Fixed(levels)
    assert str(Fixed(levels)) == f"fixed:{text}"


@pytest.mark.parametrize("text", ["fixed:50+", "fixed:+10", "fixed:50+0", "fixed:50+10+5"])
def test_half_a_pair_is_refused(text):
    with pytest.raises(InputError, match="level"):
        parse_policy(text)


def test_what_is_no_pair_of_the_table_is_refused_with_those_that_are():
    with pytest.raises(InputError, match=r"30\+10 is not among the pairs of levels 50\+50, .*, 10$"):
        TABLE[Pair(30, 10)]
    assert TABLE[50].reranker is None


def test_the_file_is_read_as_it_was_written(tmp_path):
    write_pairs(tmp_path / "pairs.json", PAIRS)
    assert read_pairs(tmp_path / "pairs.json") == PAIRS
    assert json.loads((tmp_path / "pairs.json").read_text())[4] == {
        "retriever": 50, "reranker": None, "depth": 4, "quality": 0.5, "measure": "RR@10"
    }  # fmt: skip


GOOD = {"retriever": 50, "reranker": 10, "depth": 20, "quality": 0.5, "measure": "RR@10"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "one or more pairs of levels"),
        ({"retriever": 50}, "expected a list of pairs, each with retriever"),
        ([GOOD | {"extra": 1}], "expected a list of pairs"),
        ([GOOD | {"reranker": 0}], "percentage above 0"),
        ([GOOD | {"depth": 0}], "depth 0"),
        ([GOOD | {"quality": "high"}], "quality 'high'"),
        ([GOOD | {"quality": float("nan")}], "quality nan"),
        ([GOOD, GOOD | {"quality": 0.6}], r"duplicate pair 50\+10"),
        ([GOOD, GOOD | {"reranker": None, "measure": "AP"}], "with the same measure"),
    ],
)
def test_a_broken_file_is_refused_with_its_name(tmp_path, content, says):
    file = tmp_path / "pairs.json"
    with pytest.raises(InputError, match=r"pairs.json: no such file; .*--matrix"):
        read_pairs(file)
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"pairs.json: .*{says}"):
        read_pairs(file)


def test_the_p95_of_a_pipeline_is_that_of_the_sum_of_both_stages_drawn_independently():
    def skewed(level):
        return Cell(level=level, rows=1, tokens=16, mean_ms=11, p50_ms=10, p95_ms=20, p99_ms=25, runs=1)

    stage = LatencyTable([skewed(50)])
    pairs = PairTable([measured(50, 50, 0.5, depth=1)], stage, stage, passage_tokens=1, max_tokens=16, search_ms=1)
    draws = np.interp(np.random.default_rng(0).random((2, 200_000)), [0, 0.5, 0.95, 0.99, 1], [5, 10, 20, 25, 30])
    draws *= 11 / draws.mean()
    assert pairs.p95_ms(Pair(50, 50)) == pytest.approx(1 + np.percentile(draws.sum(0), 95), rel=0.01)
