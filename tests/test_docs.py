"""The documentation is true: its commands, options, examples, metrics, codes and links."""

import doctest
import re
from pathlib import Path

import pytest
import yaml

from elasticlm import __main__
from elasticlm.handlers.ray_arguments import Arguments
from elasticlm.model.families import FAMILIES
from elasticlm.serving.client_apis import APIS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "model_store/README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```sh\n(.*?)```", re.S)
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands_of(page):
    """Command lines of elasticlm in a page's blocks, each in one line."""
    lines = "\n".join(BLOCK.findall(page.read_text("utf-8"))).replace("\\\n", " ").splitlines()
    return [line.partition("#")[0].split() for line in lines if line.strip().startswith("elasticlm ")]


@pytest.fixture(scope="module")
def options():
    """A function: command -> its options, as its help names them."""
    known = {}

    def of(command, capsys):
        if command not in known:
            with pytest.raises(SystemExit):
                __main__.main([command, "--help"])
            known[command] = set(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))
        return known[command]

    return of


@EVERY_PAGE
def test_commands_and_their_options_exist(page, options, capsys):
    for _, command, *words in commands_of(page):
        assert command in __main__.MODULES, command
        unknown = {word for word in words if word.startswith("--")} - options(command, capsys)
        assert not unknown, f"elasticlm {command}"


def test_every_command_is_documented():
    text = "".join(page.read_text("utf-8") for page in PAGES)
    assert [name for name in __main__.MODULES if f"elasticlm {name}" not in text and f"`{name}`" not in text] == []


def test_the_schedules_examples_are_right():
    failed, tried = doctest.testfile(str(ROOT / "docs/schedule.md"), module_relative=False)
    assert (failed, tried > 3) == (0, True)


def test_every_metric_is_documented():
    listed = yaml.safe_load((ROOT / "handlers/metrics.yaml").read_text("utf-8"))["model_metrics"]
    names = {metric["name"] for kind in listed.values() for metric in kind if metric["name"].startswith("elastic_")}
    assert {name for name in names if name not in (ROOT / "docs/production.md").read_text("utf-8")} == set()


def test_every_error_code_is_documented():
    code = re.compile(r'RequestError\(\s*"([a-z_]+)"')
    codes = {
        found for file in (ROOT / "elasticlm/serving").glob("*.py") for found in code.findall(file.read_text("utf-8"))
    }
    assert "too_large" in codes
    text = (ROOT / "docs/http.md").read_text("utf-8")
    assert {code for code in codes if f"`{code}`" not in text} == set()


def test_every_argument_of_ray_serve_and_every_route_is_documented():
    page = (ROOT / "docs/ray.md").read_text("utf-8")
    assert [name for name in Arguments.model_fields if f"`{name}`" not in page] == []
    clients = (ROOT / "docs/clients.md").read_text("utf-8")
    assert [route for route in APIS if f"`POST {route}`" not in clients] == []


def test_every_family_is_in_the_table():
    table = (ROOT / "docs/your-model.md").read_text("utf-8")
    assert {name for name in FAMILIES if f"`{name}`" not in table} == set()


@EVERY_PAGE
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target
