"""``elasticlm engines``: is each elastic level as fast as the strongest static engine would run it?

    elasticlm engines --model DIR --output out/engines --quality fp32=fp32.json int8=int8.json

Timed, in one process with the same threads and in turns: tokenised tensors in, the model's answer (vectors, scores)
out. Ours are all levels in PyTorch (``torch``) and ONNX Runtime (``onnx``, fp32 and int8). Against them run the whole
teacher and every level alone as a static model (see elasticlm.benchmarks.engines_peers): PyTorch (``eager``),
torch.compile
(``compile``), ONNX Runtime by the stock route and without its optimizer (``onnxruntime``, ``onnxruntime-plain``; fp32
and int8), OpenVINO (``openvino``, fp32), and the
least that PyTorch could take, a level's fp32 products with its weights by torch.mm and nothing else (``gemm``). Hidden
states are pooled by the same code for all of them. An engine that is not there or cannot be built is missing, with its
reason; nothing else fails.

Gates check ratios within a round (median over rounds). The exit code is 1 if a gate fails, after all files are
written, and 2 on bad input or a crash:

- onnx int8 against the whole teacher in ONNX Runtime's int8, at 1x16 and 8x128; the faster of its two graphs has the
  limit, the other is reported without one;
- each level **as we would serve it**, the better of our ONNX precisions, is no slower than OpenVINO's and
  torch.compile's fp32 of that level alone. The better one is most often int8, so the other, fp32 against fp32, is
  reported in a separate row without a limit;
- in int8, changing the level at every call costs no more than 5% over staying;
- memory: PyTorch with all levels against the largest alone; all levels in int8 against the fp32 teacher in PyTorch.

Writes engines.csv, engines.json, engines.md and engines.png (latency against the share of quality that is kept).
"""

import argparse
import sys
import traceback
from pathlib import Path

from elasticlm import command
from elasticlm.arguments import positive_float, positive_int
from elasticlm.benchmarks.engine_names import NAMES, QUICK_LEVELS, QUICK_SHAPES, SHAPES
from elasticlm.command import run_in_checkout
from elasticlm.errors import InputError
from elasticlm.files import claim, require_file
from elasticlm.model.folder import CONFIG_FILE


def main(argv: list[str] | None = None) -> int:
    """Entry point; the work is in elasticlm.benchmarks.engines_run."""
    options = _options().parse_args(argv)
    require_file(Path(options.model) / CONFIG_FILE)
    try:
        with claim(options.output, overwrite=options.overwrite):
            from elasticlm.benchmarks.engines_run import run_engines

            return run_engines(options, sys.argv[1:] if argv is None else argv)
    except InputError:
        raise
    except Exception:  # Python's exit code for a traceback is 1, which means here that a gate failed
        traceback.print_exc()
        return command.BAD_INPUT


def _options() -> argparse.ArgumentParser:
    options = command.parser("elasticlm engines", "Compare every level with the strongest static engines.")
    options.add_argument("--model", required=True, metavar="DIR",
                         help="elastic model with ONNX graphs in fp32 and int8")  # fmt: skip
    options.add_argument("--output", type=Path, required=True, metavar="DIR",
                         help="folder for engines.csv, .json, .md and .png")  # fmt: skip
    options.add_argument("--teacher", default="sentence-transformers/all-MiniLM-L6-v2", metavar="T",
                         help="folder or hub name of the whole encoder")  # fmt: skip
    options.add_argument("--quality", nargs="+", default=[], metavar="PRECISION=FILE.json", help="evaluations by "
                         "`elasticlm evaluate`, under fp32 and int8; else the artifact's quality.json")  # fmt: skip
    options.add_argument("--teacher-int8-retention", type=positive_float, metavar="SHARE",
                         help="of the teacher's RR@10 that its stock int8 graph keeps, for the picture")  # fmt: skip
    options.add_argument(
        "--threads", type=positive_int, default=1, metavar="N", help="number of threads for every engine"
    )
    options.add_argument("--engines", metavar="A,B", help=f"which to run (default: {','.join(NAMES)}; with --quick "
                         f"without {NAMES[-1]}); torch and onnx are ours")  # fmt: skip
    options.add_argument("--shapes", metavar="ROWSxTOKENS,..", help=f"batches to time (default: {SHAPES}; "
                         f"with --quick {QUICK_SHAPES})")  # fmt: skip
    options.add_argument("--quick", action="store_true", help="under two minutes: few rounds and shapes, of the levels "
                         f"alone only {' and '.join(map(str, QUICK_LEVELS))}")  # fmt: skip
    options.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return options


if __name__ == "__main__":
    run_in_checkout("engines")
