"""The layout of the packages: which way imports point, names, and what the core needs."""

import ast
import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "elasticlm": ROOT / "elasticlm",
    "elasticlm.trainer": ROOT / "trainer",
    "elasticlm.handlers": ROOT / "handlers",
    "elasticlm.benchmarks": ROOT / "benchmarks",
}
SHARED_NAMES = {"__init__", "__main__", "base"}
DISPATCHER = ROOT / "elasticlm" / "__main__.py"
CORE_NEEDS = {"torch", "transformers", "safetensors", "numpy", "huggingface_hub", "tqdm"}
ALSO = {"backend": {"onnx", "onnxruntime"}, "serving": {"orjson", "yaml", "faiss"}}  # with the extras onnx and serve
BERTS_OWN = (
    "BertModel",
    "BertConfig",
    "BertFor",
    "attention.self",
    "intermediate.dense",
    "word_embeddings",
    "cls.predictions",
)


def modules() -> dict[str, Path]:
    """Every module's full name and file."""
    found = {}
    for package, folder in FOLDERS.items():
        for file in folder.rglob("*.py"):
            parts = file.relative_to(folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = file
    return found


def imports(file: Path) -> set[str]:
    """Full names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def package_of(name: str) -> str:
    """Which of the four packages a module is in."""
    return max((package for package in FOLDERS if f"{name}.".startswith(f"{package}.")), key=len, default="")


@pytest.mark.parametrize("package", FOLDERS)
def test_packages_import_only_elasticlm(package):
    allowed = {package, "elasticlm"}
    for name, file in modules().items():
        if package_of(name) == package and file != DISPATCHER:
            reached = {package_of(imported) for imported in imports(file)} - {""}
            assert reached <= allowed, f"{file} imports {reached - allowed}"
            short = {imported.partition(".")[0] for imported in imports(file)} & {"trainer", "handlers", "benchmarks"}
            assert not short, f"{file} imports {short} by their short names"


def test_only_serving_imports_retrieval_inside_the_library():
    for file in (ROOT / "elasticlm").rglob("*.py"):
        part = file.relative_to(ROOT / "elasticlm").parts[0]
        if part not in ("retrieval", "serving"):
            reached = [name for name in imports(file) if name.startswith("elasticlm.retrieval")]
            assert not reached, f"{file} imports {reached}"
        if part != "serving":
            reached = [name for name in imports(file) if name.startswith("elasticlm.serving")]
            assert not reached, f"{file} imports {reached}"


def test_the_core_needs_six_libraries():
    for file in (ROOT / "elasticlm").rglob("*.py"):
        part = file.relative_to(ROOT / "elasticlm").parts[0]
        if part != "retrieval":
            outside = {name.split(".")[0] for name in imports(file)} - set(sys.stdlib_module_names) - {"elasticlm"}
            allowed = CORE_NEEDS | ALSO.get(part, set())
            assert outside <= allowed, f"{file} imports {outside - allowed}"


def test_the_core_imports_without_onnx():
    code = (
        "import sys; sys.modules['onnx'] = sys.modules['onnxruntime'] = None; "
        "import elasticlm.model.elastic_model, elasticlm.schedule.profiling"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_two_modules_share_a_name():
    stems = Counter(file.stem for file in modules().values() if file.stem not in SHARED_NAMES)
    assert [stem for stem, count in stems.items() if count > 1] == []


def test_files_are_short_enough_to_read():
    long = {str(file.relative_to(ROOT)): lines for file in modules().values()
            if (lines := len(file.read_text("utf-8").splitlines())) > 400}  # fmt: skip
    assert not long


def test_nothing_outside_the_families_names_what_is_berts_own():
    for file in (ROOT / "elasticlm").rglob("*.py"):
        if "families" not in file.parts:
            text = file.read_text("utf-8")
            assert not [name for name in BERTS_OWN if name in text], file


def test_the_packages_of_the_distribution_are_those_of_the_checkout():
    lines = (ROOT / "setup.cfg").read_text("utf-8").splitlines()
    listed = itertools.takewhile(lambda line: line.startswith("    "), lines[lines.index("packages =") + 1 :])
    there = {name for name, file in modules().items() if file.stem == "__init__"}
    assert {line.strip() for line in listed} == there
