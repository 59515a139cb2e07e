"""`openmai <stage> <verb>`: finds the stage by name and imports nothing heavy before it must."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from openmai import __version__
from openmai.base.config import merge, parse_arguments, read_yaml, validate
from openmai.base.errors import OpenmaiError
from openmai.base.verb import Verb

# In the order in which data flows. Each module holds VERBS; a stage that is itself a command has the single verb "".
STAGES = {
    "run": ("openmai.run.verbs", "a whole recipe, from web pages to a chat model"),
    "data": ("openmai.data.verbs", "web archives, files and data sets -> clean documents"),
    "tokenizer": ("openmai.tokenizer.verbs", "documents -> tokenizer and token shards"),
    "model": ("openmai.model.verbs", "a model of somebody else -> checkpoint"),
    "train": ("openmai.train.verbs", "token shards -> base model"),
    "align": ("openmai.align.verbs", "base model -> assistant"),
    "eval": ("openmai.eval.verbs", "model -> numbers with error bars"),
    "export": ("openmai.export.verbs", "checkpoint -> Hugging Face, GGUF"),
    "chat": ("openmai.infer.verbs", "talk to a model in the terminal"),
    "serve": ("openmai.serve.verbs", "OpenAI-style API and chat page"),
    "keys": ("openmai.serve.key_verbs", "API keys of the server, and what they have used"),
    "plan": ("openmai.plan.verbs", "what a model costs: parameters, FLOPs, memory"),
    "report": ("openmai.report.verbs", "one HTML page about a run"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command line; return the exit status. Errors that a user can mend are one line on standard error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "passive"
    )  # else threads spin for one that another program has displaced: 4x slower on a busy machine
    if "--quiet" in arguments:
        os.environ["OPENMAI_QUIET"] = "1"
        arguments = [argument for argument in arguments if argument != "--quiet"]
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()  # a reader that has gone shows here, not at exit
        return status
    except OpenmaiError as error:
        return _fail(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno is None:
            raise
        return _fail(
            f"{error.filename or 'system'}: {error.strerror}; nothing half-written is used: mend it and run the same command again"
        )
    except KeyboardInterrupt:
        return _fail("interrupted; run the same command again to go on", 130)


def _fail(message: str, status: int = 1) -> int:
    print(f"openmai: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(f"openmai {__version__}")
        return 0
    stage, *rest = arguments
    if stage not in STAGES:
        raise OpenmaiError(f"unknown stage '{stage}'; known: {', '.join(STAGES)}")
    verbs: dict[str, Verb] = importlib.import_module(STAGES[stage][0]).VERBS
    if "" in verbs:
        name = ""
    elif not rest or rest[0] in ("-h", "--help"):
        print(_stage_help(stage, verbs))
        return 0
    else:
        name, *rest = rest
    if name not in verbs:
        raise OpenmaiError(f"unknown verb '{stage} {name}'; known: {', '.join(f'{stage} {verb}' for verb in verbs)}")
    run_verb(verbs[name], f"openmai {stage} {name}".rstrip(), rest)
    return 0


def run_verb(verb: Verb, program: str, arguments: list[str]) -> None:
    """Build the verb's configuration from `--config FILE` and `--key=value` arguments, and run it."""
    files, rest = _take_config_files(arguments)
    values: dict = {}
    for file in files:
        values = merge(values, read_yaml(file))
    kind = verb.load_config()
    values = merge(values, parse_arguments(kind, rest, program, verb.help))
    verb.load_run()(validate(kind, values, program))


def _take_config_files(arguments: list[str]) -> tuple[list[Path], list[str]]:
    files, rest, pending = [], [], iter(arguments)
    for argument in pending:
        if argument == "--config":
            files.append(Path(next(pending, "")))
        elif argument.startswith("--config="):
            files.append(Path(argument.removeprefix("--config=")))
        else:
            rest.append(argument)
    return files, rest


def _help() -> str:
    stages = "\n".join(f"  {name:<10} {text}" for name, (_, text) in STAGES.items())
    return (
        "usage: openmai <stage> [<verb>] [--config FILE.yaml] [--key=value ...] [--quiet]\n\n"
        f"From a web page to an aligned chat model in your own hands.\n\nstages:\n{stages}\n\n"
        "`openmai <stage> --help` lists its verbs, `openmai <stage> <verb> --help` every setting.\n"
        "Begin with: openmai run recipes/laptop.yaml"
    )


def _stage_help(stage: str, verbs: dict[str, Verb]) -> str:
    lines = "\n".join(f"  {name:<10} {verb.help}" for name, verb in verbs.items())
    return f"usage: openmai {stage} <verb> [--config FILE.yaml] [--key=value ...]\n\n{STAGES[stage][1]}\n\nverbs:\n{lines}"
