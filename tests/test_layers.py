"""pytest tests/test_layers.py: who may import whom (the table of DESIGN.md), and what never loads torch."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "openmai"

# Folder (or top-level module) of openmai -> folders and modules it may import; itself always, a folder's name stands for all in it.
_TO_TASKS = {"base", "data", "tokenizer", "model", "parallel", "train", "infer", "tasks"}
ALLOWED: dict[str, set[str]] = {
    "base": set(),
    "data": {"base"},
    "tokenizer": {"base", "data"},
    "cpu": set(),
    "model": {"base", "cpu"},
    "plan": {"base", "model.config", "model.count", "model.stages"},
    "parallel": {"base", "model"},
    "train": {"base", "tokenizer", "model", "parallel"},
    "infer": {"base", "cpu", "tokenizer", "model", "parallel"},
    "tasks": {"base", "data"},
    "align": _TO_TASKS,
    "eval": {"base", "data", "tokenizer", "model", "infer", "tasks"},
    "export": {"base", "tokenizer", "model", "infer"},
    "serve": {"base", "tokenizer", "infer"},
    "run": {"base"},  # reaches the stages through their verbs, by name
    "report": {"base"},
    "cli": {"base"},
    "__main__": {"cli"},
    "__init__": set(),
}

TORCH_FREE = ("base", "data", "tokenizer", "plan", "run", "report", "cli")


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def module_of(path: Path) -> str:
    """Dotted name below openmai: "base.config", "cli", "base" for a package's __init__."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def modules_exist() -> set[str]:
    return {module_of(path) for path in files()}


def imports(source: str, known: set[str]) -> list[tuple[int, str]]:
    """Line and dotted name below openmai of every openmai module that `source` imports, at the top or inside a function."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the full name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "openmai":
                below = ".".join(parts[1:])
                module = next((m for m in (below, ".".join(parts[1:-1])) if m in known), "")
                if module:
                    found.append((node.lineno, module))
    return found


def violations(folder: str, source: str, known: set[str]) -> list[str]:
    allowed = ALLOWED[folder] | {folder}
    return [
        f"line {line}: {folder} imports {module}"
        for line, module in imports(source, known)
        if not any(module == name or module.startswith(f"{name}.") for name in allowed)
    ]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_keep_to_the_table(path: Path) -> None:
    folder = module_of(path).split(".")[0]
    assert folder in ALLOWED, f"{folder} is not in the table of stages"
    assert violations(folder, path.read_text(encoding="utf-8"), modules_exist()) == []


def test_the_check_sees_every_way_to_import() -> None:
    known = {"base", "base.files", "model", "model.config", "model.transformer", "train.loop", "data"}
    assert violations("plan", "from openmai.model.config import ModelConfig\nfrom openmai.base.files import read_json", known) == []
    assert violations("plan", "from openmai.model import transformer", known) == ["line 1: plan imports model.transformer"]
    assert violations("data", "def f():\n    import openmai.train.loop as loop", known) == ["line 2: data imports train.loop"]
    assert violations("base", "if True:\n    from openmai.data import x", known) == ["line 2: base imports data"]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("verbs.py")), ids=lambda path: path.parent.name)
def test_verbs_import_nothing_but_base(path: Path) -> None:
    assert {module for _, module in imports(path.read_text(encoding="utf-8"), modules_exist())} <= {"base.verb"}


@pytest.mark.parametrize(
    "path", [path for path in files() if path.name == "__init__.py" and path.parent != PACKAGE], ids=lambda p: p.parent.name
)
def test_package_files_are_empty(path: Path) -> None:
    assert path.read_text(encoding="utf-8").strip() == ""


_IMPORT_ALL = """
import importlib, json, sys
guilty = []
for name in json.loads(sys.argv[1]):
    module = importlib.import_module(name)
    for verb in getattr(module, "VERBS", {}).values():
        verb.load_config()
    if "torch" in sys.modules:
        guilty.append(name)
        break
print(json.dumps(guilty))
"""


def python(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_light_modules_never_load_torch() -> None:
    """Import them all in one process, with the configurations that their verbs name; the first one that brings torch in is named."""
    light = [path for path in files() if module_of(path).split(".")[0] in TORCH_FREE or path.name in ("config.py", "verbs.py")]
    names = [f"openmai.{module_of(path)}" for path in light]
    assert len(names) > 20
    assert json.loads(python("-c", _IMPORT_ALL, json.dumps(names)).splitlines()[-1]) == []


_RUN_AND_LOOK = """
import sys
from openmai.cli import main
status = main(sys.argv[1:])
print("torch" in sys.modules, status)
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plan"], ["plan", "mai-1"], ["plan", "gpt2-124m", "--json", "--tokens", "15T", "--gpus", "8"]], ids=" ".join
)
def test_commands_answer_without_torch(arguments: list[str]) -> None:
    assert python("-c", _RUN_AND_LOOK, *arguments).splitlines()[-1] == "False 0"


def test_module_entry_point_answers() -> None:
    assert "usage: openmai" in python("-m", "openmai", "--help")
