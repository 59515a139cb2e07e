"""pytest tests/test_cli.py

The house from outside: help, one clear line for every kind of bad input, work that survives being killed, recipes, artifacts.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openmai.base.artifact import Artifact, create
from openmai.base.config import Config, merge, parse_arguments, read_yaml, validate
from openmai.base.errors import OpenmaiError
from openmai.cli import STAGES, main
from openmai.data.document import SCHEMA
from openmai.run.recipe import load_recipe
from openmai.train.config import PretrainConfig

ROOT = Path(__file__).resolve().parent.parent
TEXTS = [file.read_text(encoding="utf-8") for file in sorted((ROOT / "examples" / "lessons" / "general").glob("*.md"))[:12]]
Capture = pytest.CaptureFixture[str]


def fail(capsys: Capture, *arguments: str | Path) -> str:
    """Run a command that must fail and return its one line."""
    assert main([str(argument) for argument in arguments]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("openmai: error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("openmai: error: ")


def make_documents(out: Path, texts: list[str]) -> Path:
    """Write a documents artifact without going through the data stage."""
    with create(out, kind="documents", version=1, config=Nothing(), inputs=()) as work:
        (out / "documents").mkdir(exist_ok=True)
        rows = [
            dict.fromkeys(SCHEMA.names, "") | {"id": f"{n:04}", "text": text, "source": "tiny", "scores": []}
            for n, text in enumerate(texts)
        ]
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), out / "documents" / "part-00000.parquet")
        return work.finish({"documents": len(rows)}).path


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_documents(tmp_path_factory.mktemp("cli") / "documents", TEXTS)


@pytest.fixture(scope="module")
def tokenizer(documents: Path) -> Path:
    out = documents.parent / "tokenizer"
    assert main(["tokenizer", "train", f"--documents={documents}", f"--out={out}", "--vocab_size=400"]) == 0
    return out


def encode_arguments(documents: Path, tokenizer: Path, out: Path) -> list[str]:
    return [
        "tokenizer",
        "encode",
        f"--documents={documents}",
        f"--tokenizer={tokenizer}",
        f"--out={out}",
        "--validation=0.3",
        "--workers=1",
    ]


def pretrain_arguments(shards: Path, tokenizer: Path, out: Path) -> list[str]:
    sizes = [
        "--depth=1",
        "--context=16",
        "--batch_rows=2",
        "--micro_rows=2",
        "--loop.steps=6",
        "--loop.checkpoint_every=2",
        "--loop.threads=1",
    ]
    return ["train", "pretrain", f"--shards={shards}", f"--tokenizer={tokenizer}", f"--out={out}", *sizes]


@pytest.fixture
def shards(documents: Path, tokenizer: Path, tmp_path: Path) -> Path:
    assert main(encode_arguments(documents, tokenizer, tmp_path / "shards")) == 0
    return tmp_path / "shards"


# ------------------------------------------------------------------------------------------------------------------------------ help


def test_help_names_every_stage(capsys: Capture) -> None:
    assert main([]) == main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {stage} " in text for stage in STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_every_verb_explains_its_settings(stage: str, capsys: Capture) -> None:
    for name, verb in importlib.import_module(STAGES[stage][0]).VERBS.items():
        with pytest.raises(SystemExit) as leaving:
            main([stage, *([name] if name else []), "--help"])
        assert leaving.value.code == 0
        text = capsys.readouterr().out
        assert text.startswith(f"usage: openmai {stage}")
        kind = verb.load_config()
        assert kind.__doc__
        assert kind.__doc__.splitlines()[0] in text
        for field, info in kind.model_fields.items():
            if field != "overrides":
                assert (info.alias or field) in text or field.upper() in text
                assert info.description or issubclass(info.annotation, Config), f"{stage} {name}: {field} has no description"


def test_stage_help_lists_verbs(capsys: Capture) -> None:
    assert main(["tokenizer"]) == main(["tokenizer", "--help"]) == 0
    text = capsys.readouterr().out
    assert "\n  train " in text
    assert "\n  encode " in text


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("openmai 0.")


# ------------------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "found", "remedy"),
    [
        (["trian"], "unknown stage 'trian'", "known: run, data"),
        (["train", "sft"], "unknown verb 'train sft'", "known: train pretrain"),
        (["plan", "mai-1", "--tokns=15T"], "unknown option --tokns", "did you mean --tokens?"),
        (["plan", "mai-1", "--zzz=3"], "unknown option --zzz", "--help` lists every setting"),
        (["train", "pretrain", "--loop.step", "3"], "unknown option --loop.step", "did you mean --loop.steps?"),
        (["plan", "mai-1", "stray"], "unknown option stray", "--help` lists every setting"),
        (["plan", "mai-1", "--gpus"], "--gpus: expected one argument", "--help` lists every setting"),
        (["plan", "mai-1", "--gpus=many"], "gpus='many'", "integer"),
        (["plan", "mai-2"], "mai-2: unknown model", "did you mean mai-1"),
        (["tokenizer", "encode"], "tokenizer encode: documents: required", "out: required"),
        (["tokenizer", "encode", "--config"], "", "no such file"),
        (["tokenizer", "encode", "--config=nowhere.yaml"], "nowhere.yaml", "no such file"),
        (["tokenizer", "train", "--documents=nowhere", "--out=x"], "nowhere: no such folder", "expected a documents artifact"),
        (["run", "nowhere.yaml"], "nowhere.yaml", "no such file"),
        (["run", "recipes/smoke.yaml", "--pretrian.depth=3"], "has no such step", "pretrain"),
        (["run", "recipes/smoke.yaml", "--pretrain.dept=3"], "unknown option --dept", "did you mean --depth?"),
        (["run", "recipes/smoke.yaml", "stray"], "stray: not understood", "--<step>.<key>=<value>"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_on_the_command_line(
    arguments: list[str], found: str, remedy: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    line = fail(capsys, *arguments)
    assert found in line
    assert remedy in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("out: x\nsteps:\n  shards: {verb: tokenizer encode, documnets: [a], tokenizer: b}", "did you mean 'documents'?"),
        ("out: x\nstep: {}", "did you mean 'steps'?"),
        ("out: x\nsteps:\n  a: {verb: tokenizer encode, documents: [$b], tokenizer: c}", "$b is not a step"),
        ("out: x\nsteps:\n  a: {verb: tokenizer decode}", "known: tokenizer train, tokenizer encode"),
        ("out: x\nsteps:\n  a: {verb: cook}", "unknown stage 'cook'"),
        ("out: x\nsteps:\n  a: {documents: [b]}", "needs `verb: <stage> <verb>`"),
        ("out: [x\n", "not valid YAML"),
        ("- a\n- b", "expected a mapping"),
        (
            "out: x\nsteps:\n  p: {verb: train pretrain, shards: s, tokenizer: t, depth: 2, model: {num_heads: 3}, loop: {steps: 2}}",
            "width=128 is not divisible by num_heads=3",
        ),
        ("out: x\nsteps:\n  p: {verb: train pretrain, shards: s, tokenizer: t, loop: {steps: 2}}", "give either depth or preset"),
    ],
)
def test_a_mistake_in_a_recipe(text: str, expected: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    line = fail(capsys, "run", tmp_path / "recipe.yaml")
    assert str(tmp_path / "recipe.yaml") in line
    assert expected in line
    assert not Path("x").exists()


def test_heads_that_do_not_divide_the_width(shards: Path, tokenizer: Path, tmp_path: Path, capsys: Capture) -> None:
    line = fail(capsys, *pretrain_arguments(shards, tokenizer, tmp_path / "base"), '--model={"num_heads": 7}')
    assert "width=64 is not divisible by num_heads=7; choose num_heads among [1, 2, 4, 8, 16, 32]" in line
    assert not (tmp_path / "base").exists()


def test_a_folder_that_cannot_be_written(documents: Path, tokenizer: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("in the way")  # works for root too, whom permissions do not stop
    line = fail(capsys, *encode_arguments(documents, tokenizer, tmp_path / "file" / "shards"))
    assert line.startswith(f"{tmp_path}/file/shards: cannot be written")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small disk takes the right to mount one")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(tokenizer: Path, tmp_path: Path, small_disk: Path, capsys: Capture) -> None:
    arguments = encode_arguments(make_documents(tmp_path / "many", TEXTS * 10), tokenizer, small_disk / "shards")
    line = fail(capsys, *arguments)
    assert "No space left on device" in line
    with pytest.raises(OpenmaiError, match="unfinished"):
        Artifact.load(small_disk / "shards")
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    assert main(arguments) == 0
    Artifact.load(small_disk / "shards", "shards")


def test_a_corrupted_shard(shards: Path, tokenizer: Path, tmp_path: Path, capsys: Capture) -> None:
    file = shards / "train-tiny.bin"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    line = fail(capsys, *pretrain_arguments(shards, tokenizer, tmp_path / "base"))
    assert line.startswith(f"{file}: content differs from the hash in the manifest: damaged; delete {shards}")


def test_an_artifact_of_the_wrong_kind(documents: Path, tokenizer: Path, tmp_path: Path, capsys: Capture) -> None:
    line = fail(capsys, *encode_arguments(tokenizer, documents, tmp_path / "shards"))
    assert line == f"{tokenizer}: holds a tokenizer artifact, expected a documents artifact"


_HOLD = """
import sys
from pathlib import Path
from openmai.base.artifact import create
from openmai.base.config import Config
with create(Path(sys.argv[1]), kind="held", version=1, config=Config()) as work:
    print("ready", flush=True)
    sys.stdin.read()
    work.finish({})
"""


def test_two_processes_on_one_folder(documents: Path, tokenizer: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "shards"
    with subprocess.Popen([sys.executable, "-c", _HOLD, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        line = fail(capsys, *encode_arguments(documents, tokenizer, out))
        assert line == f"{out}: another process is working on it; wait for it or choose another --out"
        holder.communicate("")
    assert main(encode_arguments(documents, tokenizer, out)) == 0


# ------------------------------------------------------------------------------------------------------------------------------ kill

# Runs a command line, and kills its own process when `module:function` has been called `count` times.
_KILLED = """
import importlib, os, signal, sys
from openmai.cli import main
module, path = sys.argv[1].split(":")
*owners, name = path.split(".")
left = [int(sys.argv[2])]
owner = importlib.import_module(module)
for part in owners:
    owner = getattr(owner, part)
original = getattr(owner, name)

def deadly(*arguments, **options):
    result = original(*arguments, **options)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, name, deadly)
main(sys.argv[3:])
"""


def kill_after(place: str, count: int, arguments: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _KILLED, place, str(count), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


def test_killed_encoding_ends_with_the_same_shards(documents: Path, tokenizer: Path, shards: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    kill_after("openmai.tokenizer.encode:join", 1, encode_arguments(documents, tokenizer, killed))
    with pytest.raises(OpenmaiError, match="unfinished: run its command again"):
        Artifact.load(killed)
    assert main(encode_arguments(documents, tokenizer, killed)) == 0
    assert Artifact.load(killed).digest == Artifact.load(shards).digest


def test_killed_training_resumes_and_ends_with_the_same_weights(shards: Path, tokenizer: Path, tmp_path: Path, capsys: Capture) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(pretrain_arguments(shards, tokenizer, whole)) == 0
    kill_after("openmai.train.checkpoints:Checkpoints._thin_out", 2, pretrain_arguments(shards, tokenizer, killed))
    assert [path.name for path in sorted((killed / "checkpoints").iterdir())] == ["step-00000002", "step-00000004"]
    capsys.readouterr()
    assert main(pretrain_arguments(shards, tokenizer, killed)) == 0
    assert "pretrain: going on after step 4" in capsys.readouterr().err
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    steps = [json.loads(line)["step"] for line in (killed / "events.jsonl").read_text().splitlines() if '"kind": "train"' in line]
    assert steps == sorted(set(steps))


# ---------------------------------------------------------------------------------------------------------------------------- recipe


def write_recipe(folder: Path, documents: Path) -> Path:
    lines = [
        f"out: {folder / 'run'}",
        "next: [look around]",
        "steps:",
        f"  tokenizer: {{verb: tokenizer train, documents: [{documents}], vocab_size: 400}}",
        f"  shards: {{verb: tokenizer encode, documents: [{documents}], tokenizer: $tokenizer, validation: 0.3}}",
    ]
    (folder / "recipe.yaml").write_text("\n".join(lines))
    return folder / "recipe.yaml"


def test_a_recipe_skips_what_is_finished_and_redoes_what_changed(documents: Path, tmp_path: Path, capsys: Capture) -> None:
    recipe = str(write_recipe(tmp_path, documents))
    assert main(["run", recipe]) == 0
    assert "skipped" not in (said := capsys.readouterr().err)
    assert "look around" in said
    assert main(["run", recipe]) == 0
    assert capsys.readouterr().err.count("unchanged since it was finished: skipped") == 2
    assert main(["run", recipe, "--shards.validation=0.4"]) == 0
    assert capsys.readouterr().err.count("unchanged since it was finished: skipped") == 1
    assert main(["run", recipe, "--shards.validation=0.4", "--tokenizer.vocab_size=390"]) == 0
    assert "skipped" not in capsys.readouterr().err  # what depends on a changed step is made anew too


def test_recipe_overrides_and_folders(documents: Path, tmp_path: Path) -> None:
    recipe, steps = load_recipe(write_recipe(tmp_path, documents), [f"--out={tmp_path}/other", "--tokenizer.vocab_size=390"])
    assert recipe.out == tmp_path / "other"
    assert [step.name for step in steps] == ["tokenizer", "shards"]
    assert steps[0].config.model_dump()["vocab_size"] == 390
    assert steps[1].config.model_dump()["tokenizer"] == tmp_path / "other" / "tokenizer"
    assert steps[1].config.model_dump()["out"] == tmp_path / "other" / "shards"


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_are_valid(file: Path) -> None:
    recipe, steps = load_recipe(file, [])
    assert recipe.description
    assert steps


# ---------------------------------------------------------------------------------------------------------------------------- config


def test_merge_goes_into_mappings_and_replaces_the_rest() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 4}
    assert merge(base, {"a": {"c": [3]}, "d": {"e": 5}}) == {"a": {"b": 1, "c": [3]}, "d": {"e": 5}}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 4}


def test_arguments_become_nested_values() -> None:
    arguments = [
        "--loop.steps=7",
        "--loop.device",
        "cuda",
        "--shards=s",
        "--tokenizer=t",
        "--out=o",
        "--upsample={docs: 1}".replace("docs", '"docs"'),
    ]
    values = parse_arguments(
        PretrainConfig, [*arguments, "--optimizer.clip=null", "--depth=2", '--model={"moe": {"num_experts": 4}}'], "test"
    )
    assert values["loop"] == {"steps": "7", "device": "cuda"}
    assert values["model"] == {"moe": {"num_experts": 4}}
    assert values["optimizer"] == {"clip": None}


def test_files_are_merged_and_the_command_line_wins(tokenizer: Path, documents: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"documents: [{documents}]\ntokenizer: nowhere\nvalidation: 0.1\nout: {tmp_path}/shards\n")
    (tmp_path / "b.yaml").write_text(f"tokenizer: {tokenizer}\nvalidation: 0.2\n")
    assert main(["tokenizer", "encode", "--config", f"{tmp_path}/a.yaml", f"--config={tmp_path}/b.yaml", "--validation=0.3"]) == 0
    artifact = Artifact.load(tmp_path / "shards")
    assert (artifact.config["validation"], artifact.config["tokenizer"]) == (0.3, str(tokenizer))


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(OpenmaiError) as error:
        validate(PretrainConfig, {"shards": "s", "tokenizer": "t", "loop": {"stps": 3, "seed": "x"}}, "here")
    text = str(error.value)
    assert text.startswith("here: ")
    assert "out: required, but not given" in text
    assert "loop.stps: unknown key; did you mean 'steps'?" in text
    assert "loop.seed='x'" in text


def test_yaml_must_be_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1\nb: {c: 2}\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": 1, "b": {"c": 2}}
    (tmp_path / "a.yaml").write_text("")
    with pytest.raises(OpenmaiError, match="found NoneType"):
        read_yaml(tmp_path / "a.yaml")


# -------------------------------------------------------------------------------------------------------------------------- artifact


class Nothing(Config):
    """No settings."""


class Settings(Config):
    """Settings of a small verb."""

    not_in_key = ("workers",)

    out: Path
    source: Path | None = None
    size: int = 1
    workers: int = 1


def make(config: Settings, text: str = "content") -> tuple[Artifact, bool]:
    """A verb in miniature: returns the artifact, and whether it had to work."""
    inputs = [config.source] if config.source else []
    with create(config.out, kind="toy", version=1, config=config, inputs=inputs) as work:
        if work.finished:
            return work.finished, False
        (config.out / "data.txt").write_text(text * config.size)
        return work.finish({"size": config.size}, scratch=["part"]), True


def test_a_finished_artifact_is_returned(tmp_path: Path) -> None:
    first, worked = make(Settings(out=tmp_path / "a"))
    assert worked
    again, worked = make(Settings(out=tmp_path / "a", workers=8))
    assert not worked
    assert again == first == Artifact.load(tmp_path / "a", "toy")
    assert set(first.files) == {"data.txt"}
    assert first.metrics == {"size": 1}


def test_the_key_follows_config_and_inputs_but_not_paths(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("one")
    (tmp_path / "copy").write_text("one")
    here = make(Settings(out=tmp_path / "a", source=tmp_path / "in"))[0]
    there = make(Settings(out=tmp_path / "b", source=tmp_path / "copy", workers=2))[0]
    assert (there.key, there.digest) == (here.key, here.digest)
    assert make(Settings(out=tmp_path / "c", source=tmp_path / "in", size=2))[0].key != here.key
    (tmp_path / "in").write_text("two")
    changed, worked = make(Settings(out=tmp_path / "a", source=tmp_path / "in"))
    assert worked
    assert changed.key != here.key


def test_unfinished_work_is_resumed_if_its_key_is_the_same(tmp_path: Path) -> None:
    out = tmp_path / "a"

    def die(size: int) -> None:
        with create(out, kind="toy", version=1, config=Settings(out=out, size=size)):
            (out / "part").mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        die(1)
    assert not (out / "manifest.json").exists()
    with create(out, kind="toy", version=1, config=Settings(out=out)) as work:
        assert work.resumed
        assert (out / "part").exists()
        work.finish({})
    (out / "part").rmdir()
    with pytest.raises(KeyboardInterrupt):
        die(2)
    assert make(Settings(out=out, size=3))[0].files.keys() == {"data.txt"}  # nothing of the other key's work is left
    assert not (out / "part").exists()


def test_what_a_killed_process_was_writing_is_cleared_away(tmp_path: Path) -> None:
    out = tmp_path / "a"

    def die() -> None:
        with create(out, kind="toy", version=1, config=Settings(out=out)):
            for name in ("part/.data.json.77.tmp", ".model.safetensors.part", "part/kept", ".kept"):
                (out / name).parent.mkdir(exist_ok=True)
                (out / name).write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        die()
    with create(out, kind="toy", version=1, config=Settings(out=out)) as work:
        assert work.finish({}).files.keys() == {"part/kept", ".kept"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "data.txt: missing"),
        (lambda file: file.write_text("short"), "data.txt: 5 bytes, expected 7: damaged"),
        (lambda file: file.write_text("consent"), "data.txt: content differs"),
    ],
    ids=["missing", "shorter", "flipped"],
)
def test_damage_is_found_by_whoever_comes_next(damage: object, message: str, tmp_path: Path) -> None:
    make(Settings(out=tmp_path / "a"))
    damage(tmp_path / "a" / "data.txt")  # type: ignore[operator]
    with pytest.raises(OpenmaiError, match=message):
        make(Settings(out=tmp_path / "a"))
    with pytest.raises(OpenmaiError, match=message):
        Artifact.load(tmp_path / "a")


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OpenmaiError, match="not empty and not an openmai artifact"):
        make(Settings(out=tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_what_is_no_artifact_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(OpenmaiError, match="no such folder; expected a toy artifact"):
        Artifact.load(tmp_path / "nowhere", "toy")
    with pytest.raises(OpenmaiError, match="not an artifact"):
        Artifact.load(tmp_path)
    (tmp_path / "manifest.json").write_text('{"kind": "toy"}')
    with pytest.raises(OpenmaiError, match="not an openmai manifest"):
        Artifact.load(tmp_path)
    (tmp_path / "manifest.json").write_text('{"kind": ')
    with pytest.raises(OpenmaiError, match="not valid JSON"):
        Artifact.load(tmp_path)


def test_what_only_changes_the_work_is_not_in_the_key_of_a_nested_setting_either(
    shards: Path, tokenizer: Path, tmp_path: Path, capsys: Capture
) -> None:
    arguments = pretrain_arguments(shards, tokenizer, tmp_path / "base")
    assert main(arguments) == 0
    began = (tmp_path / "base" / "manifest.json").stat().st_mtime_ns
    assert main([*arguments, "--loop.checkpoint_every=3", "--loop.keep=1"]) == 0
    assert (tmp_path / "base" / "manifest.json").stat().st_mtime_ns == began
    assert main([*arguments, "--loop.seed=1"]) == 0
    assert (tmp_path / "base" / "manifest.json").stat().st_mtime_ns > began


class Inner(Config):
    near: bool = True


class Outer(Config):
    name: str = ""
    fast: bool = False
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--fast", {"fast": True}),
        ("--fast=true", {"fast": True}),
        ("--inner.near=False", {"inner": {"near": False}}),
        ("--no-inner.near", {"inner": {"near": False}}),
        ("--name=true", {"name": "true"}),
    ],
)
def test_yes_or_no_is_a_flag_or_a_value(argument: str, expected: dict) -> None:
    assert validate(Outer, parse_arguments(Outer, [argument], "test"), "test") == Outer(**expected)
