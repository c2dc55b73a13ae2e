"""The distribution: every file in the wheel, every import declared, every file loaded under one name."""

import ast
import json
import os
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from test_layout import FOLDERS, ROOT, imports, modules

DATA = {
    "elasticlm": ["py.typed"],
    "elasticlm.trainer": [str(file.relative_to(ROOT / "trainer")) for file in (ROOT / "trainer").rglob("*.yaml")],
    "elasticlm.handlers": ["model-config.yaml", "config.properties", "metrics.yaml"],
    "elasticlm.benchmarks": [],
}
SERVED_BY = {
    "elasticlm": ["retrieval", "serve", "onnx"],
    "elasticlm.trainer": ["train", "ray"],
    "elasticlm.handlers": ["serve", "ray", "retrieval", "onnx"],
    "elasticlm.benchmarks": ["bench", "ray", "retrieval", "serve", "onnx"],
}
"""Extras in which a package's imports must be, besides what is always installed."""
OTHER_NAMES = {"ts": "torchserve", "yaml": "pyyaml", "sklearn": "scikit-learn", "faiss": "faiss-cpu"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", folder, ROOT], check=True, cwd=folder)
    (file,) = folder.glob("*.whl")
    return file


def test_the_wheel_holds_every_module_and_data_file_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = set()
    for package, folder in FOLDERS.items():
        place = package.replace(".", "/")
        expected |= {f"{place}/{file.relative_to(folder)}" for file in folder.rglob("*.py")}
        expected |= {f"{place}/{name}" for name in DATA[package]}
    assert names == expected


def test_the_library_works_from_the_wheel_alone(wheel, tmp_path, tiny_artifact):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = f"""
import sys; sys.path.insert(0, {str(tmp_path / "site")!r})
import elasticlm
assert elasticlm.__file__.startswith({str(tmp_path / "site")!r})
model = elasticlm.ElasticModel.from_pretrained({str(tiny_artifact)!r})
table = elasticlm.LatencyTable.from_means({{level: float(level) for level in model.levels}})
level = elasticlm.parse_policy("queue:t=250").choose(table, elasticlm.Load(queue_depth=3))
print(level, tuple(model.embed(["how does ice form"], level=level).shape))
"""
    run = subprocess.run([sys.executable, "-I", "-c", code], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.split() == ["50", "(1,", "32)"]


def declared() -> dict[str, set[str]]:
    """Distributions that are always installed (key "") and those of each extra, in lower case."""
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    sections = {"": config["options"]["install_requires"]} | dict(config["options.extras_require"])
    found: dict[str, set[str]] = {}
    for extra, text in sections.items():
        words = [line.strip() for line in text.splitlines() if line.strip()]
        found[extra] = set()
        for word in words:
            if word.startswith("%("):
                found[extra] |= found[word[2:-2]]
            else:
                found[extra].add(word.partition("[")[0].partition(">")[0].partition("=")[0].strip().lower())
    return found


@pytest.mark.parametrize("package", FOLDERS)
def test_every_direct_import_is_declared(package):
    requirements = declared()
    allowed = set().union(*(requirements[extra] for extra in ("", *SERVED_BY[package])))
    distributions = packages_distributions()
    folder = FOLDERS[package]
    for file in folder.rglob("*.py"):
        outside = {name.partition(".")[0] for name in imports(file)} - set(sys.stdlib_module_names)
        for name in outside - {"elasticlm", "model_archiver"}:
            known = {OTHER_NAMES.get(name, name)} | {found.lower() for found in distributions.get(name, ())}
            assert known & allowed, f"{file} imports {name}, which no extra of {package} declares"


def test_pins_cover_what_is_declared():
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    names = {name.replace("_", "-") for names in declared().values() for name in names}
    assert names - pinned == set()


DUMP = """
import atexit, json, os, sys
def dump():
    files = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and os.path.realpath(file).startswith(tuple(json.loads(os.environ["DUMP_FOLDERS"]))):
            files.setdefault(os.path.realpath(file), []).append(name)
    with open(os.path.join(os.environ["DUMP_TO"], f"{os.getpid()}.json"), "w") as out:
        json.dump(files, out)
atexit.register(dump)
"""
SPAWN = """
import multiprocessing
import elasticlm.trainer.prune
def child():
    import elasticlm.trainer.mixture
if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
"""


def loaded(tmp_path: Path, command: list[str]) -> list[dict[str, list[str]]]:
    """Run a command in the checkout; return, for each of its processes, the names under which files were loaded."""
    for folder in ("site", "dumps"):
        (tmp_path / folder).mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DUMP)
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path / "site"), "DUMP_TO": str(tmp_path / "dumps"),
        "DUMP_FOLDERS": json.dumps([f"{folder}/" for folder in FOLDERS.values()]),
        "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True)
    return [json.loads(file.read_text()) for file in (tmp_path / "dumps").glob("*.json")]


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "trainer", "prune", "--help"],
        ["-m", "benchmarks.simulate", "--help"],
        ["-m", "handlers.archive", "--help"],
        ["-m", "torch.distributed.run", "--nproc_per_node", "1", "-m", "elasticlm.trainer", "prune", "--help"],
        ["-m", "elasticlm", "finetune", "--help"],
        ["SPAWN"],
    ],
    ids=lambda words: " ".join(words),
)
def test_every_file_is_loaded_under_one_name(tmp_path, words):
    if words == ["SPAWN"]:
        (tmp_path / "spawning.py").write_text(SPAWN)
        words = [str(tmp_path / "spawning.py")]
    processes = loaded(tmp_path, [sys.executable, *words])
    assert any(processes)
    for files in processes:
        assert {file: names for file, names in files.items() if len(names) > 1} == {}


def test_every_module_has_one_full_name():
    code = (
        "import importlib, json, sys\n"
        "names = json.loads(sys.argv[1])\n"
        "for name in names: importlib.import_module(name)\n"
        "ours = ('elasticlm', 'trainer', 'handlers', 'benchmarks')\n"
        "files = [m.__file__ for n, m in sys.modules.items() if n.startswith(ours)]\n"
        "assert len(files) == len(set(files)), [f for f in files if files.count(f) > 1]\n"
    )
    importable = [name for name, file in modules().items() if file.stem not in ("__main__", "locustfile")]
    subprocess.run([sys.executable, "-c", code, json.dumps(importable)], check=True, cwd=ROOT)


def test_main_modules_only_dispatch():
    for folder in FOLDERS.values():
        file = folder / "__main__.py"
        if file.exists() and folder.name != "elasticlm":
            body = ast.parse(file.read_text("utf-8")).body[1:]
            assert all(isinstance(node, ast.ImportFrom | ast.If) for node in body), file
