"""Make build/typing: links under which the four packages are one tree, elasticlm, for type checkers.

setup.cfg maps trainer/, handlers/ and benchmarks/ into elasticlm; mypy and pyright do not read that mapping.
"""

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent
MAPPED = ("trainer", "handlers", "benchmarks")


def make_tree(folder: Path) -> Path:
    """Make the tree ``folder/elasticlm`` anew, of links to the files; return it."""
    tree = folder / "elasticlm"
    shutil.rmtree(tree, ignore_errors=True)
    link_files(ROOT / "elasticlm", tree)
    for package in MAPPED:
        link_files(ROOT / package, tree / package)
    return tree


def link_files(package: Path, target: Path) -> None:
    """Link a package's Python files, folder by folder."""
    for file in [*package.rglob("*.py"), *package.glob("py.typed")]:
        link = target / file.relative_to(package)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)


if __name__ == "__main__":
    make_tree(ROOT / "build" / "typing")
