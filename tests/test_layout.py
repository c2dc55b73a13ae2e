"""The house: which way imports point, and what the wheel holds."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("elasticlm", "trainer", "handlers", "benchmarks")
CORE_NEEDS = {
    "torch",
    "transformers",
    "safetensors",
    "numpy",
    "huggingface_hub",
    "tqdm",
}  # the last two by transformers


def imports(file: Path) -> set[str]:
    """Full names that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room):
    others = set(ROOMS) - {room, "elasticlm"}
    for file in (ROOT / room).rglob("*.py"):
        reached = {name.split(".")[0] for name in imports(file)}
        assert not reached & others, f"{file} imports {reached & others}"


def test_the_core_needs_four_libraries_and_only_retrieval_needs_more():
    for file in (ROOT / "elasticlm").rglob("*.py"):
        if "retrieval" in file.parts:
            continue
        names = imports(file)
        assert not any(name.startswith("elasticlm.retrieval") for name in names), file
        outside = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"elasticlm"}
        allowed = CORE_NEEDS | ({"onnx", "onnxruntime"} if file.name.startswith("onnx") else set())
        assert outside <= allowed, f"{file} imports {outside - allowed}"


def test_the_core_imports_without_onnx():
    code = "import sys; sys.modules['onnx'] = sys.modules['onnxruntime'] = None; import elasticlm.model.elastic_model, elasticlm.schedule.latency"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_wheel_holds_elasticlm_alone_and_works_outside_the_checkout(tmp_path, tiny_artifact):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", tmp_path, ROOT], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    top = {path.name for path in (tmp_path / "site").iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"elasticlm"}
    code = f"""
import elasticlm
assert elasticlm.__file__.startswith({str(tmp_path / "site")!r})
model = elasticlm.ElasticModel.from_pretrained({str(tiny_artifact)!r})
table = elasticlm.LatencyTable.from_means({{level: float(level) for level in model.levels}})
level = elasticlm.parse_policy("queue:t=250").choose(table, elasticlm.Load(queue_depth=3))
print(level, tuple(model.embed(["how does ice form"], level=level).shape))
"""
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}){code}"
    run = subprocess.run([sys.executable, "-I", "-c", code], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.split() == ["50", "(1,", "32)"]
