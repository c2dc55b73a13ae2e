"""Run ``elasticlm large-corpus``: write set and model, run the commands, measure each process's peak of memory."""

import argparse
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from elasticlm import command
from elasticlm.errors import InputError
from elasticlm.files import new_file

WORDS, SHORTEST, LONGEST = 5000, 20, 30  # of the language; words of a passage, from and to
WRITTEN_AT_ONCE = 10_000
POLL_S = 0.05


@dataclass(frozen=True)
class Measured:
    """What a process took.

    Attributes:
        peak_mb: its peak of resident memory in MB (10^6 bytes), pages of mapped files included.
        killed: whether this was the run that was killed.
    """

    step: str
    seconds: float
    peak_mb: float
    killed: bool = False


def run_large_corpus(options: argparse.Namespace) -> int:
    """Return 0 if memory stayed within the limit and no finished block was encoded again, else 1."""
    folder = options.output
    shutil.rmtree(folder, ignore_errors=True)
    command.say(f"writing {options.passages:,} passages and the model")
    write_set(folder / "set", options.passages, options.queries, options.seed)
    maker = multiprocessing.get_context("spawn").Process(target=write_model, args=(folder / "model", options.seed))
    maker.start()  # a process of its own: a child's peak would count what this one has imported
    maker.join()
    common = ["--model", str(folder / "model"), "--data", f"beir:{folder / 'set'}"]
    index = ["index", *common, "--output", str(folder / "index")]
    blocks = _Blocks(folder / "index.vectors", options.passages)
    killed = _run("index, killed", index, folder, until=blocks.half_are_there)
    finished = blocks.files()
    if not killed.killed:
        raise InputError(f"--passages {options.passages}: the index was complete before it could be killed; give more")
    steps = [killed, _run("index, resumed", index, folder, until=blocks.watch)]
    again = [name for name, written in finished.items() if blocks.seen[name] != written]
    evaluate = ["evaluate", *common, "--output"]
    runs = [folder / "with_index", folder / "without_index"]
    first, second = ([*evaluate, f"{run}.json", "--run-dir", str(run)] for run in runs)
    steps.append(_run("evaluate --index", [*first, "--index", str(folder / "index")], folder))
    steps.append(_run("evaluate", second, folder))
    hits = [(run / "teacher.run").read_bytes() for run in runs]
    summary = {
        "passages": options.passages,
        "blocks": blocks.count,
        "finished_before_kill": len(finished),
        "encoded_again": len(again),
        "same_hits": hits[0] == hits[1],
        "metrics": json.loads(Path(f"{runs[0]}.json").read_text())["metrics"]["teacher"],
        "limit_mb": options.limit_mb,
        "steps": [asdict(step) for step in steps],
    }
    with new_file(folder / "summary.json") as file:
        file.write_text(json.dumps(summary, indent=1) + "\n")
    command.print_table([{"step": step.step, "seconds": step.seconds, "peak MB": step.peak_mb} for step in steps])
    command.print_result(summary)
    within = all(step.peak_mb <= options.limit_mb for step in steps)
    return 0 if within and not again and summary["same_hits"] else 1


def write_set(folder: Path, passages: int, queries: int, seed: int) -> None:
    """Write a set in BEIR's form: random words, of which few are frequent; queries are passages."""
    random = np.random.default_rng(seed)
    (folder / "qrels").mkdir(parents=True)
    words = np.array(language(seed))
    frequency = 1 / np.arange(1, WORDS + 1)
    frequency /= frequency.sum()
    asked = set(random.choice(passages, min(queries, passages), replace=False).tolist())
    with (
        open(folder / "corpus.jsonl", "w", encoding="utf-8") as corpus,
        open(folder / "queries.jsonl", "w", encoding="utf-8") as texts,
        open(folder / "qrels/test.tsv", "w", encoding="utf-8") as qrels,
    ):
        for first in range(0, passages, WRITTEN_AT_ONCE):
            count = min(WRITTEN_AT_ONCE, passages - first)
            drawn = words[random.choice(WORDS, (count, LONGEST), p=frequency)].tolist()
            lengths = random.integers(SHORTEST, LONGEST + 1, count).tolist()
            for row, (passage, length) in enumerate(zip(drawn, lengths, strict=True), first):
                corpus.write(json.dumps({"_id": f"p{row}", "title": "", "text": " ".join(passage[:length])}) + "\n")
                if row in asked:
                    texts.write(json.dumps({"_id": f"q{row}", "text": " ".join(passage[:length])}) + "\n")
                    qrels.write(f"q{row}\tp{row}\t1\n")


def language(seed: int) -> list[str]:
    """The words of the generated language, most frequent first."""
    random = np.random.default_rng([seed, 1])
    letters = np.array(list("aeiobdfglmnrstk"))
    words: dict[str, None] = {}
    while len(words) < WORDS:
        words["".join(random.choice(letters, random.integers(2, 10)))] = None
    return list(words)


def write_model(folder: Path, seed: int) -> None:
    """Write a random BERT of 2 layers and dim 32 with the language's words, in sentence-transformers' form."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, BertTokenizer

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *language(seed)]
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64, max_position_embeddings=64, initializer_range=0.3)  # fmt: skip
    BertModel(config).save_pretrained(folder)
    BertTokenizer(tokenizer_object=backend, model_max_length=64).save_pretrained(folder)
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    (folder / "modules.json").write_text(json.dumps([
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(modules)
    ]))  # fmt: skip
    (folder / "1_Pooling").mkdir()
    pooling = {"pooling_mode_mean_tokens": True, "word_embedding_dimension": 32}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))


class _Blocks:
    """The files of finished blocks in the folder of an unfinished index, and when each was written, ns."""

    def __init__(self, folder: Path, passages: int) -> None:
        self._folder, self._passages = folder, passages
        self.rows = 0  # passages of a block, once one was seen
        self.seen: dict[str, int] = {}

    def files(self) -> dict[str, int]:
        """The finished blocks that are there now."""
        found = {}
        for file in self._folder.glob("[!.]*.npy"):
            try:
                found[file.name] = file.stat().st_mtime_ns
            except FileNotFoundError:  # the index is complete
                break
        return found

    def half_are_there(self) -> bool:
        """Whether half of the passages are encoded."""
        sizes = [np.load(self._folder / name, mmap_mode="r").shape[0] for name in self.files()]
        self.rows = max(sizes, default=0)
        return 2 * sum(sizes) >= self._passages

    @property
    def count(self) -> int:
        """Blocks of the corpus, each of ``rows`` passages but for the last, which may be gone too soon to be seen."""
        return math.ceil(self._passages / self.rows)

    def watch(self) -> bool:
        """Note what is there; the run is never to be killed."""
        self.seen |= self.files()
        return False


def _run(step: str, argv: Sequence[str], folder: Path, until: Callable[[], bool] = lambda: False) -> Measured:
    """Run a command of elasticlm, and kill it (SIGKILL) as soon as ``until`` is true."""
    command.say(f"elasticlm {' '.join(argv)}")
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "elasticlm", *argv], stdout=subprocess.DEVNULL,
                               env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")})  # fmt: skip
    killed, peak_kb = False, 0
    while process.poll() is None:
        peak_kb = max(peak_kb, _peak_kb(process.pid))
        if not killed and until():
            process.kill()
            killed = True
        time.sleep(POLL_S)
    if process.returncode and not killed:
        raise InputError(f"elasticlm {argv[0]} failed with exit code {process.returncode}")
    return Measured(step, round(time.perf_counter() - started, 1), round(peak_kb * 1.024 / 1000, 1), killed)


def _peak_kb(pid: int) -> int:
    """VmHWM of a process; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
