"""``elasticlm recipe``: run the stages of a YAML file in order; completed stages are skipped on a second run.

A recipe holds ``description``, ``minutes`` (on an idle machine with 2 cores), ``settings``, ``exclude`` and ``stages``.
A stage is one command with its options. ``{key}`` in an option, or in a setting below it, is replaced by that setting
(a list by all its values), ``{output}`` by the recipe's output. A setting without a value must be given with ``--set``.
``exclude`` names sets that no stage may train on: texts that share ten words in a row with them are dropped::

    settings: {teacher: bert-base-uncased, data: pydoc}
    exclude: ["beir:my_test_set"]
    stages:
      - prune: {teacher: "{teacher}", data: "{data}", output: "{output}/pruned"}
      - profile: {model: "{output}/pruned"}

``base: NAME`` in place of stages takes those of another recipe, with other settings, and ``then`` lists stages to run
after them. A model or index outside the recipe's output that is there already is taken as it is: so can recipes share a
start.
"""

import importlib
import json
import string
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from elasticlm import command
from elasticlm.command import say
from elasticlm.errors import InputError
from elasticlm.files import claim, new_file
from elasticlm.hints import near_match

COMMANDS = ("prune", "distil", "finetune", "index", "evaluate", "compare", "profile", "export")  # that a stage may run
RECIPES = Path(__file__).with_name("recipes")
FIELDS = ("base", "description", "minutes", "settings", "exclude", "stages", "then")
OF_BASED = ("base", "description", "minutes", "settings", "then")
STATE_FILE = "recipe.json"
RESUMABLE = TRAINING = ("distil", "finetune")
READING = ("prune", *TRAINING)
MAKING = (*READING, "index")


@dataclass(frozen=True)
class Stage:
    """One command of a recipe, with its options as they stand in the file."""

    command: str
    options: Mapping[str, Any]

    def argv(self, settings: Mapping[str, Any]) -> list[str]:
        """The command line, settings filled in."""
        words = []
        for name, value in self.options.items():
            flag = "--" + name.replace("_", "-")
            if isinstance(value, bool):
                words.append(flag if value else flag.replace("--", "--no-", 1))
            elif values := _filled_in(value, settings):
                words += [flag, *values]
        return words


@dataclass(frozen=True)
class Recipe:
    """A recipe as it was read and checked."""

    name: str
    settings: Mapping[str, Any]
    exclude: tuple[str, ...]
    stages: tuple[Stage, ...]

    @classmethod
    def read(cls, name: str) -> "Recipe":
        """Read a recipe by its name or its file. Raises InputError that says what is wrong and where."""
        file = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
        if not file.is_file():
            raise InputError(
                f"no recipe {name}{near_match(name, names())}; there are {', '.join(names())}, or give a .yaml file"
            )
        try:
            content = yaml.safe_load(file.read_text("utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: not YAML ({error})") from None
        if not isinstance(content, dict):
            raise InputError(f"{file}: expected {', '.join(FIELDS)}")
        for key in content:
            if key not in FIELDS:
                raise InputError(f"{file}: unknown field {key!r}{near_match(key, FIELDS)}")
        if base := content.get("base"):
            return cls._based(file, base, content)
        if "then" in content:
            raise InputError(f"{file}: then: adds stages to those of base, and there is no base here; use stages")
        settings, stages = content.get("settings") or {}, content.get("stages") or []
        exclude = content.get("exclude") or []
        if not (isinstance(settings, dict) and isinstance(exclude, list) and isinstance(stages, list) and stages):
            raise InputError(f"{file}: expected settings with their values, a list of stages, and exclude as a list")
        known: set[str] = set()
        for key, value in settings.items():
            _check_keys(f"{file}, setting {key!r}", value, known)
            known.add(key)
        _check_keys(f"{file}, exclude", exclude, known)
        checked = tuple(_stage(file, number, stage, settings) for number, stage in enumerate(stages, 1))
        return cls(file.stem, settings, tuple(exclude), checked)

    @classmethod
    def _based(cls, file: Path, base: str, content: Mapping[str, Any]) -> "Recipe":
        """Another recipe with other settings, and perhaps with further stages."""
        if not set(content) <= set(OF_BASED):
            raise InputError(f"{file}: a recipe with base has settings only, and further stages in then; its first "
                             f"stages are those of {base}")  # fmt: skip
        recipe, settings, then = cls.read(base), content.get("settings") or {}, content.get("then") or []
        if not isinstance(then, list):
            raise InputError(f"{file}: then: expected a list of stages")
        for key in settings:
            if key not in recipe.settings:
                raise InputError(f"{file}: {base} has no setting {key!r}{near_match(key, recipe.settings)}")
        first = len(recipe.stages) + 1
        further = tuple(_stage(file, number, stage, recipe.settings) for number, stage in enumerate(then, first))
        return replace(recipe, name=file.stem, settings={**recipe.settings, **settings},
                       stages=(*recipe.stages, *further))  # fmt: skip

    def with_settings(self, assignments: Iterable[str]) -> "Recipe":
        """The recipe with some settings changed, given as ``key=value``. Raises InputError on a key that it lacks."""
        changed = dict(self.settings)
        for assignment in assignments:
            key, equals, value = assignment.partition("=")
            if not equals:
                raise InputError(f"--set {assignment}: expected key=value")
            if key not in changed:
                raise InputError(
                    f"--set {assignment}: recipe {self.name} has no setting {key!r}{near_match(key, changed)}"
                )
            changed[key] = value
        return replace(self, settings=changed)

    def commands(self, output: Path) -> tuple[dict[str, Any], list[tuple[str, list[str]]]]:
        """The settings, filled in, and every stage's command with its options.

        Raises InputError if a setting has no value.
        """
        settings: dict[str, Any] = {"output": str(output)}
        if missing := [key for key, value in self.settings.items() if value is None]:
            assignments = " ".join(f"{key}=..." for key in missing)
            raise InputError(f"recipe {self.name} needs a value for {', '.join(missing)}: --set {assignments}")
        for key, value in self.settings.items():
            values = _filled_in(value, settings)
            settings[key] = values if isinstance(value, list) else values[0]
        exclude = _filled_in(list(self.exclude), settings)
        commands = []
        for stage in self.stages:
            options = stage.argv(settings)
            if exclude and stage.command in READING:
                options += ["--exclude", *exclude]
            commands.append((stage.command, options))
        return settings, commands


def main(argv: list[str] | None = None) -> None:
    parser = command.parser("elasticlm recipe", __doc__.partition(": ")[2].partition("\n")[0])
    parser.add_argument("recipe", metavar="NAME_OR_FILE", help=f"one of {', '.join(names())}, or a .yaml file")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change settings of the recipe")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder that the stages write into; a "
                        "second run with the same settings goes on where the first one stopped")  # fmt: skip
    args = parser.parse_args(argv)
    recipe, output = Recipe.read(args.recipe).with_settings(args.set), Path(args.output)
    with claim(output, overwrite=True):
        run_stages(recipe, output)


def run_stages(recipe: Recipe, output: Path) -> None:
    """Run the stages that are not done yet, and print how long each took."""
    state_file = output / STATE_FILE
    done: list[dict[str, Any]] = json.loads(state_file.read_text("utf-8"))["stages"] if state_file.exists() else []
    settings, todo = recipe.commands(output)
    for (name, options), before in zip(todo, done, strict=False):
        if [name, *options] != before["command"]:
            raise InputError(f"{output}: {' '.join(before['command'])} was done there, not {name} "
                             f"{' '.join(options)}; choose another --output")  # fmt: skip
    for number, (name, options) in enumerate(todo, 1):
        title = f"{recipe.name}, stage {number} of {len(todo)}: {name}"
        if number <= len(done):
            say(f"{title}: done before ({done[number - 1]['seconds']:.0f} s)")
            continue
        start = time.monotonic()
        if name in MAKING and (given := _given(options, output)):
            say(f"{title}: {given} is there already and taken as it is")
        else:
            say(f"{title} {' '.join(options)}")
            load(name)([*options, *_repeat_flags(name, options, output)])
        done.append({"command": [name, *options], "seconds": round(time.monotonic() - start, 1)})
        with new_file(state_file) as file:
            file.write_text(
                json.dumps({"recipe": recipe.name, "settings": settings, "stages": done}, indent=1), "utf-8"
            )
    rows = [{"stage": stage["command"][0], "minutes": round(stage["seconds"] / 60, 2)} for stage in done]
    command.print_table(rows)
    command.print_result({"output": str(output), "recipe": recipe.name, "stages": rows})


def load(name: str) -> Callable[[list[str]], object]:
    """Return the main function of a command that a stage may run."""
    return importlib.import_module(f"elasticlm.trainer.{name}").main


def names() -> list[str]:
    """The recipes that come with the project."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def _stage(file: Path, number: int, stage: Any, settings: Mapping[str, Any]) -> Stage:
    where = f"{file}, stage {number}"
    if not (isinstance(stage, dict) and len(stage) == 1 and isinstance(next(iter(stage.values())), dict)):
        raise InputError(f"{where}: expected one command with its options, such as `profile: {{model: DIR}}`")
    name, options = next(iter(stage.items()))
    if name not in COMMANDS or name == "recipe":
        raise InputError(f"{where}: unknown command {name!r}{near_match(name, COMMANDS)}")
    _check_keys(where, list(options.values()), settings)
    return Stage(name, options)


def _check_keys(where: str, value: Any, known: Iterable[str]) -> None:
    """Raise InputError where a text asks for a setting that is not known (there)."""
    if isinstance(value, list):
        for one in value:
            _check_keys(where, one, known)
        return
    for _, key, _, _ in string.Formatter().parse(str(value)):
        if key is not None and key != "output" and key not in known:
            raise InputError(f"{where}: no setting {key!r}{near_match(key, known)}")


def _filled_in(value: Any, settings: Mapping[str, Any]) -> list[str]:
    """A value as words: settings filled in, those that are lists as all their values."""
    if isinstance(value, list):
        return [word for one in value for word in _filled_in(one, settings)]
    key = str(value)[1:-1]
    if str(value) == f"{{{key}}}" and isinstance(settings.get(key), list):
        return settings[key]
    return [str(value).format_map(settings)]


def _repeat_flags(name: str, options: list[str], output: Path) -> list[str]:
    """What lets an unfinished stage run again: it goes on, and replaces what it left in the recipe's own folder."""
    flags = ["--resume"] if name in RESUMABLE else []
    target = _target(options)
    if target and target.is_relative_to(output):
        flags.append("--overwrite")
    return flags


def _given(options: list[str], output: Path) -> Path | None:
    """What a stage would write, where it lies outside the recipe's output and exists."""
    target = _target(options)
    return target if target and target.exists() and not target.is_relative_to(output) else None


def _target(options: list[str]) -> Path | None:
    return Path(options[options.index("--output") + 1]) if "--output" in options else None
