"""Command-line conventions: options, progress on stderr, a table and one line of JSON on stdout, exit codes."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from tqdm import tqdm

from elasticlm.errors import InputError
from elasticlm.files import full_disk

BAD_INPUT = 2
INTERRUPTED = 130
READER_GONE = 141
PLAIN_LINES_EVERY_S = 10.0


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of every option, except None and False."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        hidden = action.default is None or action.default is False or action.default == []  # 0 is shown
        return action.help if hidden else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """Raises InputError for invalid options, so that they are reported in one line without the usage text."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def parser(prog: str, description: str) -> argparse.ArgumentParser:
    """An argument parser that shows its defaults, takes no abbreviations and raises InputError on bad options."""
    return _Parser(prog=prog, description=description, formatter_class=_HelpFormatter, allow_abbrev=False)


def run(main: Callable[[list[str] | None], int | None], argv: list[str] | None = None) -> NoReturn:
    """Run a command's main and exit: 2 with one line on bad input or a full disk, 130 when interrupted."""
    try:
        code = main(argv) or 0
        sys.stdout.flush()
        sys.exit(code)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # `| head` has seen enough; what is left in the buffer must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(READER_GONE)
    except Exception as error:
        if not (reason := full_disk(error)):
            raise
        where = f"the disk of the output, of the cache or of {tempfile.gettempdir()} is full"
        print(f"error: {where} ({' '.join(str(reason).split())})", file=sys.stderr)
        sys.exit(BAD_INPUT)


def run_in_checkout(*words: str) -> NoReturn:
    """Start ``elasticlm`` anew with these words before the process's own arguments.

    For modules that are run under their short name in a checkout (``python -m benchmarks.simulate``): the new process
    loads every file only once, under its full name.
    """
    os.execv(sys.executable, [sys.executable, "-m", "elasticlm", *words, *sys.argv[1:]])


def progress(
    iterable: Iterable | None = None, *, total: int | None = None, desc: str = "", unit: str = "it", done: int = 0
) -> tqdm:
    """A tqdm bar on a terminal; elsewhere a plain line every ten seconds.

    Args:
        done: how much of the total an earlier run has done, which does not count for the rate.
    """
    if sys.stderr.isatty():
        return tqdm(iterable, total=total, desc=desc, unit=unit, initial=done, dynamic_ncols=True)
    plain = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
    return tqdm(iterable, total=total, desc=desc, unit=unit, initial=done, file=_Lines(),
                mininterval=PLAIN_LINES_EVERY_S, maxinterval=PLAIN_LINES_EVERY_S, bar_format=plain)  # fmt: skip


def say(text: str) -> None:
    """One status line on stderr."""
    tqdm.write(text, file=sys.stderr)


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as an aligned table: numbers right, text left; columns as in the first row."""
    if not rows:
        return
    columns = list(rows[0])
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[i]) for line in cells)) for i, column in enumerate(columns)]
    numeric = [all(isinstance(row.get(column, 0), int | float) for row in rows) for column in columns]
    for line in [columns, *cells]:
        padded = [text.rjust(w) if n else text.ljust(w) for text, w, n in zip(line, widths, numeric, strict=True)]
        print("  ".join(padded).rstrip())


def print_result(result: Mapping[str, Any]) -> None:
    """Print the result for programs: one line of JSON, the last of stdout."""
    print(json.dumps(result, ensure_ascii=False), flush=True)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:,.2f}"
    return str(value)


class _Lines:
    """Stderr for tqdm off a terminal: each refresh on a line of its own, no carriage returns."""

    def write(self, text: str) -> None:
        text = text.replace("\r", "").strip()
        if text:
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()
