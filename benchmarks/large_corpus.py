"""``elasticlm large-corpus``: index and evaluate a large generated corpus, and measure the memory that it takes.

    elasticlm large-corpus --passages 2000000 --output out/large

A tiny random BERT (2 layers of dim 32) encodes passages of 20 to 30 words. ``elasticlm index`` is killed (SIGKILL) when
half of the passages are encoded, and started again; then ``elasticlm evaluate`` measures with the index, and without
one. Each is a process of its own, whose peak of resident memory is read (VmHWM, mapped files included). Writes
summary.json; exits with 1 where a process took more than the limit, a finished block was encoded again, or the two
evaluations found different passages.
"""

import argparse
from pathlib import Path

from elasticlm.arguments import non_negative_int, positive_int
from elasticlm.command import parser, run_in_checkout
from elasticlm.files import claim


def main(argv: list[str] | None = None) -> int:
    """Entry point; the work is in elasticlm.benchmarks.large_corpus_run."""
    options = _options().parse_args(argv)
    with claim(options.output, overwrite=options.overwrite):
        from elasticlm.benchmarks.large_corpus_run import run_large_corpus

        return run_large_corpus(options)


def _options() -> argparse.ArgumentParser:
    options = parser("elasticlm large-corpus", "Measure the memory of indexing and evaluating a generated corpus.")
    options.add_argument("--passages", type=positive_int, default=2_000_000, help="passages of 20 to 30 words")
    options.add_argument("--queries", type=positive_int, default=500, help="queries, each the text of a passage")
    options.add_argument("--limit-mb", type=positive_int, default=1500, help="limit of resident memory, MB")
    options.add_argument("--seed", type=non_negative_int, default=0, help="seed of passages, queries and model")
    options.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    options.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return options


if __name__ == "__main__":
    run_in_checkout("large-corpus")
