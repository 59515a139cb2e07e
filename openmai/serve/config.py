"""Configuration of the server and of its keys."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from openmai.base.config import Config
from openmai.infer.config import EngineConfig

KEYS = Path("openmai-keys.sqlite")


class Limits(Config):
    """What one caller may ask for."""

    body_bytes: int = Field(8 << 20, gt=0)
    "largest request body"
    seconds: float = Field(600.0, gt=0)
    "longest time for one answer, waiting included"
    waiting: int = Field(1024, gt=0)
    "requests that may wait for a row; further ones are refused with status 503"


class ServeConfig(EngineConfig):
    """Offer a model as an OpenAI-style API and a chat page."""

    path: CliPositionalArg[Path] = Path("runs/laptop")
    "checkpoint, or folder of a run, whose newest model is taken; with an external engine, a folder that `export hf` wrote"
    host: str = "127.0.0.1"
    "address to listen on; 0.0.0.0 lets other machines in"
    port: int = Field(8000, ge=0, le=65535)
    "port to listen on; 0: any free one"
    name: str = ""
    "name of the model in the API; default: after its folder"
    api_key: str = ""
    "one key that callers must send; default: the environment variable OPENMAI_API_KEY"
    keys: Path | None = None
    "file of keys and usage that `openmai keys` made; a key of it is asked for then"
    limits: Limits = Limits()
    draft: Path | None = None
    "checkpoint of a small model on the same tokenizer that guesses tokens, with speculate=draft"
    adapters: dict[str, Path] = {}
    "LoRA adapters by the name that requests give as their model: folders that PEFT saved"
    fim: bool = False
    "the model has learned to fill in the middle (`tokenizer encode --fim`): offer `suffix`"
    runs: Path | None = None
    "folder of runs to show on the page of runs; default: the one that `path` lies in"
    engine: Literal["openmai", "vllm", "sglang"] = "openmai"
    "what computes: this process, or vLLM or SGLang, started from their own environment behind our keys, limits and page"
    engine_command: str = ""
    "how the external engine is started, with {path}, {name}, {host} and {port} in it; default: its usual command"
    engine_url: str = ""
    "address of an external engine that runs already"
    dry_run: bool = False
    "print the command of the external engine and leave"
    threads: int = Field(0, ge=0)
    "CPU threads; 0: as many as PyTorch chooses"


class KeyConfig(Config):
    """Which file of keys."""

    keys: Path = KEYS
    "file of keys and usage (SQLite)"


class CreateKeyConfig(KeyConfig):
    """Make an API key. It is shown once; the file holds only its hash."""

    name: CliPositionalArg[str]
    "who it is for"
    models: tuple[str, ...] = ()
    "models that it may use; default: all"
    requests_per_minute: int = Field(0, ge=0)
    "0: no limit"
    tokens_per_minute: int = Field(0, ge=0)
    "tokens of prompts and answers; 0: no limit"


class RevokeKeyConfig(KeyConfig):
    """Let an API key end."""

    id: CliPositionalArg[str]
    "its id in `keys list`"
