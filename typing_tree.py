"""Make build/typing: links under which the four packages are one tree, elasticlm, for type checkers.

setup.cfg maps trainer/, handlers/ and benchmarks/ into elasticlm; mypy and pyright do not read that mapping.
"""

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent
TREE = ROOT / "build" / "typing" / "elasticlm"


def main() -> None:
    """Make the tree anew."""
    shutil.rmtree(TREE, ignore_errors=True)
    TREE.mkdir(parents=True)
    for part in (ROOT / "elasticlm").iterdir():
        if part.name != "__pycache__":
            (TREE / part.name).symlink_to(part)
    for package in ("trainer", "handlers", "benchmarks"):
        (TREE / package).symlink_to(ROOT / package)


if __name__ == "__main__":
    main()
