"""Configuration of the server."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from openmai.base.config import Config


class ServeConfig(Config):
    """Offer a model as an OpenAI-style API and a chat page."""

    path: CliPositionalArg[Path] = Path("runs/laptop")
    "checkpoint, or folder of a run, whose newest model is taken"
    host: str = "127.0.0.1"
    "address to listen on; 0.0.0.0 lets other machines in"
    port: int = Field(8000, ge=0, le=65535)
    "port to listen on; 0: any free one"
    name: str = ""
    "name of the model in the API; default: after its folder"
    api_key: str = ""
    "key that callers must send; default: the environment variable OPENMAI_API_KEY, else none is asked for"
    rows: int = Field(8, gt=0)
    "requests answered at the same time; further ones wait"
    max_length: int | None = Field(None, gt=1)
    "longest prompt and answer together, in tokens; default: the model's context"
    threads: int = Field(0, ge=0)
    "CPU threads; 0: as many as PyTorch chooses"
