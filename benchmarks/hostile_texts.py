"""How long texts take before the forward pass, compared with the same texts already clipped (``fuzz --hostile``)."""

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elasticlm.benchmarks.served_archive import Archive
from elasticlm.command import print_result, print_table, progress
from elasticlm.errors import InputError
from elasticlm.files import new_folder
from elasticlm.machine import machine
from elasticlm.model.structure import level_name
from elasticlm.model.tokenizing import CHARACTERS_PER_TOKEN
from elasticlm.serving.core import ServingCore
from elasticlm.serving.engine import Answerer
from elasticlm.serving.requests import Classify, Embed, Score, accept
from elasticlm.serving.settings import Settings

SIZES_KB = (4, 16, 64, 256)
RUNS, ROUNDS, CLEAR_RATIO = 9, 4, 1.2
"""The shortest of 9 times counts, because other processes use the machine; of up to 36 where the ratio is above 1.2."""
MOST_RATIO = 3.0
FLAT = 2.0
"""The ratio at 256 KB may be this many times that at 16 KB: reading JSON takes time in proportion to its bytes."""
FIELDS = {"embed": ("text",), "score": ("query", "passages"), "classify": ("sentence1", "sentence2")}


def _random_text(characters: int) -> str:
    draw = random.Random(0)
    ranges = ((0x20, 0xD800), (0xE000, 0x110000))
    return "".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(characters))


TEXTS: dict[str, Callable[[int], str]] = {
    "words": lambda characters: "the river and the rain " * (characters // 23 + 1),
    "one word": lambda characters: "a" * characters,
    "punctuation": lambda characters: "!" * characters,
    "spaces": lambda characters: "a" + " " * characters,
    "spaces alone": lambda characters: " " * characters,
    "control characters": lambda characters: "\x00" * 4000 + "a" + "\x00" * characters,
    "joiners": lambda characters: "\u200d" * 4000 + "a" + "\u200d" * characters,
    "random Unicode": _random_text,
    "emoji families": lambda characters: "👩‍👩‍👧‍👦" * (characters // 7 + 1),
    "combining marks": lambda characters: "a" + "\u0301" * characters,
    "alternating accents": lambda characters: "éa" * (characters // 2 + 1),
    "Chinese": lambda characters: "日本語" * (characters // 3 + 1),
    "Hangul": lambda characters: "각" * characters,
    "long decompositions": lambda characters: "\ufdfa" * characters,
}
"""Texts of at least so many characters."""


def measure_hostile(options: argparse.Namespace) -> int:
    """Run what the options name."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        archive = Archive.unpack(options.archive, Path(folder) / "archive")
        if archive.task not in FIELDS or archive.is_pipeline:
            raise InputError(f"--hostile: {options.archive} must have the task {' or '.join(FIELDS)} and one stage")
        handler = {"policy": f"fixed:{level_name(archive.smallest)}", "max_body_bytes": 2**20}
        settings = Settings.of_section({**archive.handler, **handler})
        core = ServingCore.open(archive.bundle.folder, settings)
        assert isinstance(core.engine, Answerer), "an archive of one stage"
        limits = core.engine.model.config.max_tokens
        limit = limits.query if archive.task == "embed" else limits.pair
        rows = [row for name, make in progress(TEXTS.items(), desc="texts", unit="text")
                for row in measure(core, settings, archive.task, name, make, CHARACTERS_PER_TOKEN * limit)]  # fmt: skip
    worst, growth = max(row["ratio"] for row in rows), _growth(rows)
    result = {"machine": machine(), "task": archive.task, "max_tokens": limit, "worst_ratio": worst,
              "growth_16_to_256_kb": growth, "holds": worst <= MOST_RATIO and growth <= FLAT}  # fmt: skip
    with new_folder(options.output, overwrite=options.overwrite) as output:
        (output / "hostile.json").write_text(json.dumps(result | {"texts": rows}, indent=1) + "\n", encoding="utf-8")
    print_table(rows)
    print_result({"output": str(options.output), **result})
    return 0 if result["holds"] else 1


def measure(
    core: ServingCore, settings: Settings, task: str, name: str, make: Callable[[int], str], clip: int
) -> list[dict[str, Any]]:
    """Return a row per size: time before the forward pass, and that of the same text cut to ``clip`` characters."""
    rows = []
    bytes_each = len(json.dumps(make(1000)[:1000], ensure_ascii=False).encode()) / 1000
    for size_kb in SIZES_KB:
        characters = int(size_kb * 1024 / len(FIELDS[task]) / bytes_each)
        text = make(characters)[:characters]
        bodies = [body_of(task, text[:-1] + "a"), body_of(task, text[: clip - 1] + "a")]  # "a": never blank
        best_ms = [math.inf, math.inf]
        for _ in range(ROUNDS):
            for _ in range(RUNS):
                best_ms = [
                    min(ms, before_forward_ms(core, settings, body)) for ms, body in zip(best_ms, bodies, strict=True)
                ]
            if best_ms[0] <= CLEAR_RATIO * best_ms[1]:
                break
        whole_ms, clipped_ms = best_ms
        rows.append({"text": name, "KB": size_kb, "ms": round(whole_ms, 3), "clipped ms": round(clipped_ms, 3),
                     "ratio": round(whole_ms / clipped_ms, 2)})  # fmt: skip
    return rows


def body_of(task: str, text: str) -> bytes:
    """Return a request whose every text is this one."""
    value = {name: [text] if name == "passages" else text for name in FIELDS[task]}
    return json.dumps(value, ensure_ascii=False).encode()


def before_forward_ms(core: ServingCore, settings: Settings, body: bytes) -> float:
    """Parse and tokenise a request as the engine does; return the processor time."""
    assert isinstance(core.engine, Answerer), "an archive of one stage"
    model = core.engine.model
    started_s = time.process_time()
    match accept(body, {}, None, settings, core.engine.service).request:
        case Embed(text=text):
            model.tokenize([text])
        case Score(query=query, passages=passages):
            model.tokenize_pairs([query] * len(passages), list(passages))
        case Classify(sentence1=first, sentence2=second):
            model.tokenize_pairs([first], [second or ""])
    return (time.process_time() - started_s) * 1e3


def _growth(rows: list[dict[str, Any]]) -> float:
    """Return how many times as large as at 16 KB the ratio is at 256 KB, at most."""
    ratios = {(row["text"], row["KB"]): row["ratio"] for row in rows}
    return round(max(ratios[name, SIZES_KB[-1]] / ratios[name, 16] for name in TEXTS), 2)
