"""pytest tests/test_readme.py

What the documents say is true: commands parse, settings exist, recipes are valid, links lead somewhere, every folder has its line.
"""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from openmai.base.config import Config, merge, parse_arguments, read_yaml, validate
from openmai.base.verb import Verb
from openmai.cli import STAGES
from openmai.data.config import BuildConfig
from openmai.model.config import preset_names
from openmai.run.config import RunConfig
from openmai.run.recipe import load_recipe

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "examples/README.md",
]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(page: Path) -> Iterator[str]:
    """Every command line of openmai in the page's code blocks, fenced or indented."""
    text = page.read_text(encoding="utf-8")
    fenced = "\n".join("    " + line for _, block in FENCE.findall(text) for line in block.splitlines())
    for line in (FENCE.sub("", text) + "\n" + fenced).splitlines():
        found = re.match(r" {4,}(?:\$ )?(?:\.venv/bin/)?(openmai .+)", line)
        if found and "…" not in line and "<" not in line:
            yield re.split(r" +[#|>] ", found[1])[0].strip()


def arguments_of(command: str) -> tuple[type[Config], list[str], str]:
    """Return the configuration that a command fills, its arguments and its name; fails if there is no such stage or verb."""
    _, stage, *rest = shlex.split(command)
    assert stage in STAGES, f"no stage {stage}"
    verbs: dict[str, Verb] = importlib.import_module(STAGES[stage][0]).VERBS
    name = "" if "" in verbs else rest.pop(0)
    assert name in verbs, f"no verb {stage} {name}"
    return verbs[name].load_config(), rest, f"openmai {stage} {name}".strip()


def check(command: str) -> None:
    """Fail unless the command's stage, verb, options and values exist; what it leaves out may be in a recipe or in --config."""
    kind, arguments, program = arguments_of(command)
    if "--config" in arguments:
        place = arguments.index("--config")
        del arguments[place : place + 2]
        parse_arguments(kind, arguments, program)
        return
    values = parse_arguments(kind, arguments, program)
    config = validate(kind, values, program)
    if isinstance(config, RunConfig) and (ROOT / config.recipe).exists():
        load_recipe(ROOT / config.recipe, config.overrides)


EVERY_COMMAND = [(page.name, command) for page in PAGES for command in commands(page) if not command.endswith("--help")]


@pytest.mark.parametrize(("page", "command"), EVERY_COMMAND, ids=[f"{page}: {command}" for page, command in EVERY_COMMAND])
def test_commands_are_real(page: str, command: str) -> None:
    check(command)


def test_commands_are_found_and_a_wrong_one_fails() -> None:
    assert len([page for page, _ in EVERY_COMMAND if page == "README.md"]) >= 5
    with pytest.raises(AssertionError, match="no stage"):
        check("openmai cook dinner")
    with pytest.raises(AssertionError, match="no verb"):
        check("openmai train everything")
    with pytest.raises(Exception, match="did you mean --depth"):
        check("openmai train pretrain --dept=3")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [target.partition("#")[0] for target in LINK.findall(text) if not re.match(r"[a-z]+:", target)]
    missing = [target for target in targets if target and not (page.parent / target).exists()]
    assert not missing, f"{page.name} links to {', '.join(missing)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_blocks_are_valid(page: Path, tmp_path: Path) -> None:
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language != "yaml":
            continue
        value = yaml.safe_load(block)
        if "steps" in value:
            (tmp_path / "recipe.yaml").write_text(block, encoding="utf-8")
            load_recipe(tmp_path / "recipe.yaml", [])
        elif "sources" in value:
            validate(BuildConfig, merge(value, {"out": "x"}), page.name)


def test_every_folder_is_in_the_table_of_stages() -> None:
    folders = {path.parent.name for path in (ROOT / "openmai").glob("*/__init__.py")}
    rows = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    assert sorted(rows) == sorted(folders)


def test_every_verb_is_in_the_table_of_stages() -> None:
    for stage, (module, _) in STAGES.items():
        for name in importlib.import_module(module).VERBS:
            assert f"`{f'{stage} {name}'.strip()}`" in README


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert {page.name for page in (ROOT / "docs").rglob("*.md")} - {"README.md"} == set(re.findall(r"\]\((?:\w+/)?(\w+\.md)\)", index))


@pytest.mark.parametrize("stage", ["tokenizer", "train", "align", "eval", "plan"])
def test_pages_name_every_setting_and_no_other(stage: str) -> None:
    text = (ROOT / "docs" / f"{stage}.md").read_text(encoding="utf-8")
    kinds = [verb.load_config() for verb in importlib.import_module(STAGES[stage][0]).VERBS.values()]
    shared = {"loop", "optimizer", "schedule"} if stage == "align" else set()  # described in train.md
    known = {name for kind in kinds for name in settings(kind, shared)}
    cells = re.findall(r"^\| (`[^|]*`) \|[^|]*\| ", text, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`([\w.*]+)`", cell)}
    assert named == known


def settings(kind: type[Config], shared: set[str], prefix: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        if name in shared:
            yield f"{name}.*"
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            yield from settings(field.annotation, shared, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"^ {4}make (\w+)", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert named <= targets, page.name


def test_figures_that_can_be_counted() -> None:
    assert f"Any of {len(preset_names())} presets" in README
    assert f"or {len(preset_names())} presets" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_plan_in_the_readme_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    from openmai.cli import main

    command, block = re.search(r"^    \$ openmai (plan .+)\n((?:    .*\n|\n)+)", README, re.MULTILINE).groups()  # type: ignore[union-attr]
    assert main(shlex.split(command)) == 0
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.rstrip().splitlines())
    shown = "\n".join(line.removeprefix("    ").rstrip() for line in block.rstrip().splitlines())
    assert re.fullmatch(re.escape(shown).replace("…", "(?s:.*)"), printed)  # an ellipsis leaves lines out


def test_recipes_end_with_commands_that_are_real() -> None:
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        for command in read_yaml(recipe).get("next", []):
            if (found := re.match(r"(?:\.venv/bin/)?(openmai .+)", command)) is not None:
                check(found[1].partition("  ")[0])
