"""The online simulation: one rush, served anew under each arm's policy by the real server.

    elasticlm simulate --archive model_store/mini.mar --data pydoc --split test \\
        --arms deadline queue fixed:100 fixed:5 --users auto --duration 45 --output out/rush

An arm refuses what it cannot answer within its budget, and its queue is bounded like the archive's; `fixed:LEVEL` alone
answers everything, like a static model. Every arm sees the same traffic, and is compared with the first over the
questions that both were asked. With `--repeats 3` all arms run three times, one after another, each round with traffic
of its own, and the lead over each other arm gets an interval over the rounds besides. An arm that fails ends the run;
what was finished before is written.

Open loops: `--arrivals trace:FILE.csv --requests 3000 --load 0.6` takes the trace's busiest window of so many arrivals
and stretches time until they offer 0.6 of what the largest level can carry.

The result is a folder: trace.csv (one row per request), summary.json, rush.png and index.html, to open in a browser.
"""

import argparse
from pathlib import Path

from elasticlm.arguments import at_least, non_negative_int, or_auto, positive_float, positive_int
from elasticlm.benchmarks.arrivals import parse_arrivals
from elasticlm.benchmarks.servers import SERVERS
from elasticlm.command import parser, run_in_checkout
from elasticlm.files import claim, require_file
from elasticlm.retrieval.data_specs import check_spec
from elasticlm.schedule.policies import parse_policy


def main(argv: list[str] | None = None) -> int:
    """Entry point; the work is in elasticlm.benchmarks.rush_simulation."""
    options = _options().parse_args(argv)
    require_file(options.archive)
    check_spec(options.data)
    if options.arrivals:
        parse_arrivals(options.arrivals)
    for arm in options.arms or ():
        parse_policy(arm, default_budget_ms=1.0)
    with claim(options.output, overwrite=options.overwrite):
        from elasticlm.benchmarks.rush_simulation import run_simulation

        return run_simulation(options)


def _options() -> argparse.ArgumentParser:
    options = parser("elasticlm simulate", "Drive a rush through TorchServe or Ray Serve, once for each arm's policy.")
    options.add_argument("--archive", type=Path, required=True, metavar="FILE.mar", help="what is served")
    options.add_argument("--server", choices=SERVERS, default="torchserve", help="what serves it")
    options.add_argument("--data", required=True, metavar="SPEC", help="queries, passages and judgements")
    options.add_argument("--split", default="test", help="whose queries are sent")
    options.add_argument("--arms", nargs="+", metavar="POLICY", help="deadline:t=MS, slack:t=MS,alpha=SHARE, "
                         "queue:t=MS; fixed:LEVEL answers everything, fixed:LEVEL,t=MS refuses what is late; "
                         "of a pipeline fixed:50+10; others without t: once for each budget "
                         "(default: deadline queue fixed:LARGEST fixed:SMALLEST)")  # fmt: skip
    options.add_argument("--budgets", type=_budgets, default="auto", metavar="MS,..",
                         help="latency budgets T in ms by which every arm is judged; "
                         "auto: 5, 7.5 and 10 service times of the largest level")  # fmt: skip
    options.add_argument("--workload", default="query", help="what users ask: query, related, or "
                         "rerank:N, a query with N passages (BM25's best)")  # fmt: skip
    options.add_argument("--tokens", type=positive_int, metavar="N", help="with related: only passages of at least N "
                         "tokens, cut to N, so that all requests cost the same (default: all, cut to 128)")  # fmt: skip
    options.add_argument("--users", type=or_auto(positive_int), default="auto", help="users at the peak; "
                         "auto: enough to offer 3 times the capacity of the largest level, "
                         "at most 0.8 of the smallest's")  # fmt: skip
    options.add_argument("--spawn-rate", type=or_auto(positive_float), default="auto", metavar="PER_S",
                         help="users that come a second; auto: all within 5/12 of the duration")  # fmt: skip
    options.add_argument("--duration", type=positive_float, default=120.0, metavar="S", help="seconds per arm")
    options.add_argument("--pause", type=_pause, default="1,3", metavar="S,S", help="seconds of a pause, least,most")
    options.add_argument("--arrivals", metavar="SPEC", help="open loop instead of users: trace:FILE.csv, "
                         "poisson:RATE or gamma:RATE,CV; RATE in requests per second")  # fmt: skip
    options.add_argument("--load", type=positive_float, metavar="SHARE", help="with --arrivals: stretch time to "
                         "offer this share of what the largest level carries")  # fmt: skip
    options.add_argument("--requests", type=at_least(2), default=3000, metavar="N", help="with --load: so many "
                         "arrivals, of a trace its busiest window")  # fmt: skip
    options.add_argument("--repeats", type=positive_int, default=1, metavar="N", help="rounds of all arms, each "
                         "with traffic of its own")  # fmt: skip
    options.add_argument("--pin", action="store_true", help="run the workers on cores of their own, and the "
                         "frontend and the driver on the others, which otherwise slow them down in bursts")  # fmt: skip
    options.add_argument("--no-request-start", action="store_true", help="do not send the header X-Request-Start")
    options.add_argument("--index", metavar="DIR_OR_FAISS", help="ask for embeddings and judge them against this index")
    options.add_argument("--ids", metavar="FILE", help="passage ids of a FAISS file, one per line in row order")
    options.add_argument("--teacher", metavar="T", help="where the artifact's teacher is, if passages must be encoded")
    options.add_argument("--seed", type=non_negative_int, default=0, help="of queries, pauses and arrivals")
    options.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for trace, summary and page")
    options.add_argument("--overwrite", action="store_true", help="replace the output folder")
    return options


def _budgets(text: str) -> list[float] | None:
    if text == "auto":
        return None
    budgets = [positive_float(part) for part in text.split(",")]
    if budgets != sorted(set(budgets)):
        raise argparse.ArgumentTypeError(f"{text}: expected budgets in ms, ascending, such as 250,375,500")
    return budgets


def _pause(text: str) -> tuple[float, float]:
    shortest, longest = (float(part) for part in (text.split(",") if "," in text else (text, text)))
    if not 0 <= shortest <= longest or not longest:
        raise argparse.ArgumentTypeError(f"{text}: expected seconds LEAST,MOST such as 1,3")
    return shortest, longest


if __name__ == "__main__":
    run_in_checkout("simulate")
