"""``elasticlm fuzz``: hostile bodies and headers for the serving core and a real TorchServe.

    elasticlm fuzz --archive model_store/mini.mar --output out/fuzz

Requests are generated in about thirty ways: valid ones, and ones that are damaged in one respect each, which know the
error codes that are right for them (elasticlm.benchmarks.fuzz_bodies). First the core gets them in this process, in
batches of 8 with one polite request in each; then a TorchServe of its own gets them over 8 connections, one of which is
polite. Everything runs at one level (``fixed:LEVEL``), so that a polite request must get the answer that it gets alone,
to 1e-5 in fp32.

Writes fuzz.json: requests and outcomes by kind, requests that the parser reads per second, and the slowest body. Ends
with exit code 1 if a request got another outcome than it should, a 5xx or no answer, if a polite answer differs, if a
body took more than 100 ms of processor time to parse, or if the worker was replaced; failures.jsonl then has the
requests.

``--hostile`` measures instead the processor time of parsing and tokenising texts and pairs of 4 to 256 KB, compared
with the same text cut to the length at which texts are clipped. It fails if one takes more than 3 times as long, or if
that ratio doubles from 16 to 256 KB. Writes hostile.json.
"""

import argparse
from pathlib import Path

from elasticlm.arguments import non_negative_int
from elasticlm.command import parser, run_in_checkout
from elasticlm.files import claim, require_file


def main(argv: list[str] | None = None) -> int:
    """Entry point; the work is in elasticlm.benchmarks.fuzz_run and hostile_texts."""
    options = _options().parse_args(argv)
    require_file(options.archive)
    with claim(options.output, overwrite=options.overwrite):
        if options.hostile:
            from elasticlm.benchmarks.hostile_texts import measure_hostile

            return measure_hostile(options)
        from elasticlm.benchmarks.fuzz_run import run_fuzz

        return run_fuzz(options)


def _options() -> argparse.ArgumentParser:
    options = parser("elasticlm fuzz", "Send hostile requests to the serving core and to a TorchServe of its own.")
    options.add_argument("--archive", type=Path, required=True, metavar="FILE.mar", help="what is served")
    options.add_argument("--core", type=non_negative_int, default=1_000_000, metavar="N", help="requests for the core")
    options.add_argument("--server", type=non_negative_int, default=10_000, metavar="N", help="requests for TorchServe")
    options.add_argument("--level", metavar="K", help="the level that answers (default: the smallest)")
    options.add_argument("--hostile", action="store_true", help="measure the time that long texts take before the "
                         "forward pass")  # fmt: skip
    options.add_argument("--seed", type=non_negative_int, default=0, help="of the generated requests")
    options.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    options.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return options


if __name__ == "__main__":
    run_in_checkout("fuzz")
