"""The simulated queue: small cases by hand, known formulas, and the bound against every choice there is."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from elasticlm.benchmarks.hindsight import all_service_ms, hindsight_bound
from elasticlm.benchmarks.queue_server import Server
from elasticlm.benchmarks.queue_simulation import simulate
from elasticlm.benchmarks.queue_traffic import ClosedLoop, OpenLoop
from elasticlm.benchmarks.service_times import PairTimes, ServiceTimes
from elasticlm.errors import InputError
from elasticlm.model.structure import Pair
from elasticlm.schedule.cascade import MeasuredPair, PairTable
from elasticlm.schedule.latency import Cell, LatencyTable
from elasticlm.schedule.load import Load
from elasticlm.schedule.policies import Fixed, parse_policy

ALONE = Server(overhead_ms=0, turnaround_ms=0)  # one worker, batch size 1


def table(means_ms):
    return ServiceTimes(LatencyTable.from_means(means_ms))


def at(*arrival_ms):
    return OpenLoop(arrival_ms=np.array(arrival_ms, dtype=float))


def cell(level=50, rows=1, tokens=16, mean_ms=10.0, p50_ms=9.0, p95_ms=12.0, p99_ms=15.0):
    return Cell(
        level=level, rows=rows, tokens=tokens, mean_ms=mean_ms, p50_ms=p50_ms, p95_ms=p95_ms, p99_ms=p99_ms, runs=1
    )


class Recording:
    """A fixed level that remembers the loads it saw."""

    budget_ms = None

    def __init__(self, level=50):
        self.level, self.loads = level, []

    def smallest(self, levels):
        return self.level

    def choose(self, table: LatencyTable, load: Load, found):
        self.loads.append(load)
        return self.level


# -- Service times -----------------------------------------------------------------------------------------------------


def test_drawn_times_have_the_tables_mean_and_the_quantiles_shape():
    times = ServiceTimes(LatencyTable([cell(mean_ms=9.5)]))
    draws = np.array([times.draw_ms(50, 1, None, share) for share in np.random.default_rng(0).random(50_000)])
    assert draws.mean() == pytest.approx(9.5, rel=0.005)
    p50, p95, p99 = np.percentile(draws, [50, 95, 99])
    assert p95 / p50 == pytest.approx(12 / 9, rel=0.01)
    assert p99 / p50 == pytest.approx(15 / 9, rel=0.02)


@pytest.mark.parametrize(
    "spread", [{"p50_ms": 9.0, "p95_ms": 8.0}, {"p95_ms": 40.0, "p99_ms": None}, {"p95_ms": 12.0, "p99_ms": 11.0}]
)
def test_quantiles_never_fall_and_stay_above_zero(spread):
    quantiles = ServiceTimes(LatencyTable([cell(**spread)])).quantiles_ms(50, 1, None)
    assert quantiles[0] > 0
    assert quantiles == sorted(quantiles)


def test_between_cells_the_nearest_ones_shape_gets_the_tables_mean():
    grid = LatencyTable([cell(tokens=16, mean_ms=10), cell(tokens=64, mean_ms=30, p50_ms=30, p95_ms=30, p99_ms=30)])
    times = ServiceTimes(grid)
    assert times.quantiles_ms(50, 1, 60) == pytest.approx([grid.mean_ms(50, 1, 60)] * 5)  # constant, as at 64
    assert times.quantiles_ms(50, 1, 20)[2] > times.quantiles_ms(50, 1, 20)[1]  # spread, as at 16
    assert times.quantiles_ms(50, 4, 16) == pytest.approx([4 * ms for ms in times.quantiles_ms(50, 1, 16)])


def test_remembered_look_ups_are_the_tables_own():
    grid = LatencyTable([cell(level=level, tokens=tokens, mean_ms=level * tokens, p95_ms=2.0 * level * tokens)
                         for level in (50, 10) for tokens in (16, 64)])  # fmt: skip
    times = ServiceTimes(grid)
    for _ in range(2):
        for level, rows, tokens in itertools.product((50, 10), (1, 3), (None, 16, 40, 100)):
            assert times.mean_ms(level, rows, tokens) == grid.mean_ms(level, rows, tokens)
            assert times.p95_ms(level, rows, tokens) == grid.p95_ms(level, rows, tokens)
    assert ServiceTimes(grid, [10]).levels == (10,)


@pytest.fixture
def pairs():
    """A pipeline that reranks four passages: 50 % searches in 10.5 ms and reranks in 20."""
    retriever = LatencyTable([cell(level=level, mean_ms=level / 5) for level in (50, 10)])
    reranker = LatencyTable([cell(level=level, rows=rows, tokens=tokens, mean_ms=level * rows / 10)
                           for level in (50, 10) for rows in (1, 4, 8) for tokens in (16, 64)])  # fmt: skip
    measured = [(50, 50, 0.7), (50, 10, 0.6), (10, None, 0.4), (10, 50, 0.1)]
    pairs = [MeasuredPair(retriever=d, reranker=r, depth=4, quality=q, measure="RR@10") for d, r, q in measured]
    return PairTable(pairs,
                     retriever, reranker, passage_tokens=40, max_tokens=64, search_ms=0.5)  # fmt: skip


def test_a_pipelines_times_are_its_tables_and_its_draws_have_their_mean(pairs):
    times = PairTimes(pairs)
    assert times.levels == pairs.levels == (Pair(50, 50), Pair(50, 10), 10)
    for level in times.levels:
        for rows in (1, 2, 3):
            assert times.mean_ms(level, rows, 16) == pytest.approx(pairs.mean_ms(level, rows, 16))
            assert times.p95_ms(level, rows, 16) == pytest.approx(pairs.p95_ms(level, rows, 16))
            draws = [times.draw_ms(level, rows, 16, share) for share in np.linspace(0, 1, 20_000, endpoint=False)]
            assert np.mean(draws) == pytest.approx(pairs.mean_ms(level, rows, 16), rel=0.001)
            assert draws == sorted(draws)
    assert times.most_rows == 1  # lists of four in tables of one query and of eight passages


def test_of_a_pipeline_some_pairs_can_be_kept(pairs):
    kept = PairTimes(pairs).keeping([Pair(50, 10), 10])
    assert kept.levels == (Pair(50, 10), 10)
    kept.check_levels([10])
    with pytest.raises(InputError, match=r"50\+50 is not among the pairs of levels 50\+10, 10"):
        kept.check_levels([Pair(50, 50)])


def test_a_pipelines_pair_follows_the_queue(pairs):
    served = simulate(parse_policy("queue:t=70"), PairTimes(pairs), ALONE, at(*[0.0] * 6))
    assert served.queue_depth.tolist() == [0, 4, 3, 2, 1, 0]
    assert served.level.tolist() == [0, 2, 1, 1, 0, 0]  # 30.5, 14.5 and 2.5 ms


# -- One worker, one request at a time ---------------------------------------------------------------------------------


def test_three_requests_by_hand():
    policy = Recording()
    served = simulate(policy, table({50: 10.0}), Server(overhead_ms=1, turnaround_ms=2), at(0, 5, 40))
    assert served.answered_ms.tolist() == [11, 23, 51]  # the worker is free again at 12
    assert served.latency_ms.tolist() == [11, 18, 11]
    assert [load.ages_ms for load in policy.loads] == [(0,), (7,), (0,)]
    assert (policy.loads[0].overhead_ms, policy.loads[0].turnaround_ms) == (1, 2)


@pytest.mark.parametrize("turnaround_ms", [0.0, 3.0, 20.0])
def test_the_law_predicts_when_the_last_waiting_request_is_answered(turnaround_ms):
    """A policy plans with t + rounds (t + turnaround) + r, and that is when the last one of the queue is answered."""
    server, arrivals = Server(overhead_ms=1.5, turnaround_ms=turnaround_ms), at(0, *[0.01] * 5)
    planned_ms = 10 + 4 * (10 + turnaround_ms) + 1.5  # by the second request, with four behind it
    for budget_ms, level in ((planned_ms + 0.01, 50), (planned_ms - 0.01, 10)):
        policy = parse_policy(f"slack:t={budget_ms},alpha=1")
        served = simulate(policy, table({50: 10.0, 10: 0.1}), server, arrivals)
        assert served.level[1] == (50, 10).index(level)
    served = simulate(Recording(), table({50: 10.0}), server, arrivals)
    began_ms = 10 + turnaround_ms
    assert served.answered_ms[-1] - began_ms == pytest.approx(planned_ms)


def test_the_policy_sees_the_queue_behind_its_batch_and_takes_a_smaller_level():
    served = simulate(parse_policy("queue:t=60"), table({50: 20.0, 10: 4.0}), ALONE, at(0, 1, 2, 3, 4))
    assert served.queue_depth.tolist() == [0, 3, 2, 1, 0]
    assert served.level.tolist() == [0, 1, 0, 0, 0]  # 4 * 20 > 60 alone
    assert served.answered_ms.tolist() == [20, 24, 44, 64, 84]


def test_requests_in_flight_are_the_users_of_an_open_loop():
    traffic = at(0, 5, 10, 40)
    served = simulate(Fixed(50), table({50: 10.0}), ALONE, traffic)
    assert traffic.users(served.arrival_ms, served.answered_ms).tolist() == [1, 2, 2, 1]


def test_mean_wait_agrees_with_pollaczek_and_khinchine():
    load, service_ms, count = 0.7, 10.0, 200_000
    gaps = np.random.default_rng(0).exponential(service_ms / load, count)
    served = simulate(Fixed(50), table({50: service_ms}), ALONE, at(*np.cumsum(gaps)))
    wait_ms = (served.latency_ms - service_ms).mean()
    assert wait_ms == pytest.approx(load * service_ms / (2 * (1 - load)), rel=0.03)


def test_equal_seeds_give_equal_runs_and_policies_meet_the_same_luck():
    times = ServiceTimes(LatencyTable([cell(50), cell(10, mean_ms=5.0, p50_ms=4.5, p95_ms=6.0, p99_ms=7.5)]))
    first, again, small = (
        simulate(Fixed(level), times, ALONE, OpenLoop(arrival_ms=np.arange(50) * 100.0, seed=3))
        for level in (50, 50, 10)
    )
    other = simulate(Fixed(50), times, ALONE, OpenLoop(arrival_ms=np.arange(50) * 100.0, seed=4))
    assert np.array_equal(first.answered_ms, again.answered_ms)
    assert not np.array_equal(first.answered_ms, other.answered_ms)
    assert small.latency_ms * 2 == pytest.approx(first.latency_ms)


def test_late_requests_are_refused_and_hold_the_worker_only_for_that_long():
    server = Server(overhead_ms=0, turnaround_ms=0, refusal_ms=2)
    policy, times = parse_policy("deadline:t=25"), table({50: 10.0})
    served = simulate(policy, times, server, at(0, 1, 2, 3, 19))
    # At 20 it is too late for the third and the fourth, but not for the last one if they are refused.
    assert served.status.tolist() == [200, 200, 504, 504, 200]
    assert served.answered_ms.tolist() == [10, 20, 22, 24, 34]
    assert served.in_time(25).tolist() == [True, True, False, False, True]
    hopeless = at(0, 1, 2, 3, 4)
    assert simulate(policy, times, server, hopeless).status.tolist() == [200] * 5  # nobody is saved by refusals
    assert simulate(policy, times, server, hopeless, late="reject").status.tolist() == [200, 200, 504, 504, 504]
    answered = simulate(policy, times, server, at(0, 1, 2, 3, 19), late="answer")
    assert answered.status.tolist() == [200] * 5
    assert answered.answered_ms.tolist() == [10, 20, 30, 40, 50]


def test_a_full_queue_refuses_what_comes_beyond_it_at_once():
    served = simulate(
        Fixed(50), table({50: 10.0}), Server(overhead_ms=0, turnaround_ms=0, queue_size=2), at(0, 1, 2, 3, 15)
    )
    assert served.status.tolist() == [200, 200, 200, 503, 200]
    assert served.latency_ms.tolist() == [10, 19, 28, 0, 25]


def test_while_the_queue_is_full_the_smallest_level_makes_room():
    policy, times = parse_policy("deadline:t=1000"), table({50: 10.0, 10: 1.0})
    server = Server(overhead_ms=0, turnaround_ms=0, queue_size=2)
    served = simulate(policy, times, server, at(0, 1, 2, 3))
    assert served.status.tolist() == [200, 200, 200, 503]
    assert served.answered_ms.tolist() == [10, 11, 21, 3]
    assert simulate(policy, times, replace(server, queue_size=9), at(0, 1, 2)).answered_ms.tolist() == [10, 20, 30]


# -- Batches and workers -----------------------------------------------------------------------------------------------


def test_a_batch_with_room_waits_for_more_until_it_is_full_or_due():
    policy = Recording()
    server = Server(batch_size=4, max_batch_delay_ms=5, overhead_ms=1, turnaround_ms=1)
    arrivals = at(0, 2, 4.9, 100, 101, 102, 103, 200)
    served = simulate(policy, table({50: 10.0}), server, arrivals)
    # three are there when the first batch is due at 5; four fill the second at 103; the last waits its 5 ms alone
    assert [load.batch for load in policy.loads] == [3, 4, 1]
    assert [load.rows for load in policy.loads] == [3, 4, 1]
    assert served.answered_ms.tolist() == [5 + 30 + 1] * 3 + [103 + 40 + 1] * 4 + [205 + 10 + 1]
    assert policy.loads[0].ages_ms == pytest.approx((5, 3, 0.1))


def test_a_worker_that_becomes_free_takes_a_full_batch_at_once_and_sees_the_rest():
    policy = Recording()
    server = Server(batch_size=4, max_batch_delay_ms=1, overhead_ms=0, turnaround_ms=0, rows=2)
    served = simulate(policy, table({50: 10.0}), server, at(0, *[5] * 6))
    # alone, due at 1, until 21; four of six at once, until 101; the other two wait 1 ms for more
    assert [(load.batch, load.queue_depth) for load in policy.loads] == [(1, 0), (4, 2), (2, 0)]
    assert [load.rows for load in policy.loads] == [2, 8, 4]
    assert served.answered_ms.tolist() == [21] + [101] * 4 + [142] * 2


def test_a_batch_that_filled_up_does_not_start_the_next_one_early():
    policy = Recording()
    server = Server(batch_size=2, max_batch_delay_ms=10, overhead_ms=0, turnaround_ms=0, workers=2)
    simulate(policy, table({50: 100.0}), server, at(0, 1, 2, 11.5))
    # 0 and 1 leave full at 1; their delay, over at 10, is not that of 2, which waits until 11.5 brings a second
    assert [load.ages_ms for load in policy.loads] == [(1, 0), (9.5, 0)]


def test_two_workers_share_the_queue():
    policy = Recording()
    served = simulate(policy, table({50: 10.0}), Server(workers=2, overhead_ms=0, turnaround_ms=0), at(0, 1, 2, 3))
    assert served.answered_ms.tolist() == [10, 11, 20, 21]
    assert {load.workers for load in policy.loads} == {2}
    assert served.queue_depth.tolist() == [0, 0, 1, 0]


def test_one_worker_collects_at_a_time():
    policy = Recording()
    server = Server(workers=2, batch_size=3, max_batch_delay_ms=5, overhead_ms=0, turnaround_ms=0)
    simulate(policy, table({50: 10.0}), server, at(0, 1, 20))
    assert [load.batch for load in policy.loads] == [2, 1]  # the idle second worker does not take the one at 1


# -- The closed loop ---------------------------------------------------------------------------------------------------


def test_users_of_a_rush_send_pause_and_send_again():
    rush = ClosedLoop(user_count=20, duration_ms=30_000, ramp_ms=10_000, seed=1)
    served = simulate(Fixed(50), table({50: 40.0}), ALONE, rush)
    assert len(set(served.request.tolist())) == len(served.request)
    user, number = np.divmod(served.request, rush.each)
    assert sorted(set(user.tolist())) == list(range(20))
    for one in range(20):
        mine = np.flatnonzero(user == one)
        assert number[mine].tolist() == list(range(len(mine)))  # none lost, none twice
        assert served.arrival_ms[mine[0]] == one * 500
        pauses = served.arrival_ms[mine[1:]] - served.answered_ms[mine[:-1]]
        assert ((pauses >= 1000) & (pauses < 3000)).all()
        assert served.answered_ms[mine[-1]] + 3000 > 30_000  # went on to the end
    assert served.arrival_ms.max() < 30_000
    assert served.queue_depth.max() < 20
    users = rush.users(served.arrival_ms, served.answered_ms)
    assert (users[0], users[-1]) == (1, 20)
    in_system = OpenLoop(arrival_ms=served.arrival_ms).users(served.arrival_ms, served.answered_ms)
    assert (in_system <= users).all()


def test_a_slow_server_is_sent_less():
    rush = ClosedLoop(user_count=30, duration_ms=20_000, ramp_ms=5_000)
    slow, quick = (len(simulate(Fixed(50), table({50: ms}), ALONE, rush).request) for ms in (200.0, 2.0))
    assert slow == pytest.approx(20_000 / 200, abs=31)
    assert quick > 2 * slow


# -- The bound ---------------------------------------------------------------------------------------------------------


def best_of_all_choices(arrival_ms, service_ms, quality, budget_ms):
    best = 0.0
    for choice in itertools.product([None, *range(len(quality))], repeat=len(arrival_ms)):
        free, total = 0.0, 0.0
        for i, level in enumerate(choice):
            if level is None:  # left out
                continue
            free = max(free, arrival_ms[i]) + service_ms[i, level]
            total += quality[level] * (free - arrival_ms[i] <= budget_ms)
        best = max(best, total)
    return best / len(arrival_ms)


@pytest.mark.parametrize("seed", range(25))
def test_the_bound_is_the_best_of_all_choices(seed):
    random = np.random.default_rng(seed)
    arrival_ms = np.sort(random.integers(0, 60, 6)).astype(float)
    service_ms = np.stack([random.integers(10, 30, 6), random.integers(1, 14, 6)], axis=1).astype(float)
    exact = best_of_all_choices(arrival_ms, service_ms, (1.0, 0.7), 30)
    assert hindsight_bound(arrival_ms, service_ms, (1.0, 0.7), 30) == pytest.approx(exact)
    off_grid = arrival_ms + random.random(6), service_ms + random.random((6, 2))
    off_grid = np.sort(off_grid[0]), off_grid[1]
    exact = best_of_all_choices(*off_grid, (1.0, 0.7), 30)
    assert hindsight_bound(*off_grid, (1.0, 0.7), 30) >= exact - 1e-12
    assert hindsight_bound(*off_grid, (1.0, 0.7), 30, grid_ms=1e-3) == pytest.approx(exact)


@pytest.mark.parametrize("load", [0.5, 1.5, 4.0])
def test_no_policy_exceeds_the_bound(load):
    means = {100: 34.0, 50: 18.0, 20: 9.0, 5: 3.4}
    times = ServiceTimes(LatencyTable([
        cell(level=level, mean_ms=ms, p50_ms=ms, p95_ms=1.1 * ms, p99_ms=1.5 * ms) for level, ms in means.items()
    ]))  # fmt: skip
    quality, server, budget_ms = np.array([0.67, 0.64, 0.59, 0.53]), Server(), 170.0
    gaps = np.random.default_rng(1).gamma(1 / 4, 4 * 36 / load, 1000)
    traffic = OpenLoop(arrival_ms=np.cumsum(gaps))
    most = hindsight_bound(traffic.arrival_ms, all_service_ms(times, server, traffic), quality, budget_ms)
    names = [f"fixed:{level}" for level in means] + ["queue:t=170"] + [f"slack:t=170,alpha={a}" for a in (0.4, 0.6, 1)]
    reached = {}
    for name in names:
        served = simulate(parse_policy(name), times, server, traffic)
        reached[name] = float((quality[served.level] * served.in_time(budget_ms)).mean())
    assert max(reached.values()) <= most, reached
    assert most <= quality[0]
    assert max(reached.values()) > 0.85 * most  # and it is not far away
