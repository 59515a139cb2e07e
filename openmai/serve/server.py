"""`openmai serve`: load the model, listen, answer until told to stop, then finish what has begun."""

from __future__ import annotations

import errno
import gc
import os
import shlex
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI

from openmai.base.errors import OpenmaiError
from openmai.base.progress import say
from openmai.infer.adapters import attach
from openmai.infer.engine import Engine
from openmai.infer.load import load_assistant, load_draft
from openmai.infer.pack import pack
from openmai.infer.warm import warm_up
from openmai.serve.app import create_app
from openmai.serve.config import ServeConfig
from openmai.serve.external import serve_external
from openmai.serve.gate import Gate
from openmai.serve.keys import KeyStore
from openmai.serve.runs import Runs

DRAIN_SECONDS = 120  # after SIGTERM running answers get this long


def serve(config: ServeConfig) -> None:
    """Serve `config.path` until SIGTERM or Ctrl-C; running answers are finished first."""
    if config.threads:
        torch.set_num_threads(config.threads)
    with ExitStack() as stack:
        if config.engine != "openmai":
            serve_external(config, stack, run)
            return
        listener = stack.enter_context(listen(config.host, config.port))
        model, tokenizer, found = load_assistant(config.path)
        draft = None if config.draft is None else load_draft(config.draft, model)
        for part in (model, draft):
            if part is not None:
                pack(part, config.weights)
        warm_up(model, tokenizer)
        gate, name = open_gate(config, stack), config.name or found
        if name in config.adapters:
            raise OpenmaiError(f"adapters: {name} is the name of the model itself; give the adapter another, or the model one with --name")
        engine = stack.enter_context(Engine(model, tokenizer, config, draft, attach(model, config.adapters)))
        run(create_app(engine, name, gate, config.limits, config.fim, find_runs(config)), listener, name, gate)
    say("stopped")


def open_gate(config: ServeConfig, stack: ExitStack) -> Gate:
    """Return the gate with the configured keys."""
    store = KeyStore(config.keys) if config.keys else None
    if store:
        stack.callback(store.close)
    return Gate(config.api_key or os.environ.get("OPENMAI_API_KEY", ""), store)


def find_runs(config: ServeConfig) -> Runs | None:
    """Return the runs to show: those that the model's own run lies among, unless told otherwise."""
    if config.runs is not None:
        if not config.runs.is_dir():
            raise OpenmaiError(f"runs={config.runs}: no such folder")
        return Runs(config.runs)
    folder = config.path.resolve()
    run_folder = folder.parent if (folder / "model.json").exists() else folder
    return Runs(run_folder.parent) if run_folder.parent != Path("/") else None


def run(app: FastAPI, listener: socket.socket, name: str, gate: Gate) -> None:
    """Answer on `listener` until told to stop."""
    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        h11_max_incomplete_event_size=1 << 16,
    )
    gc.freeze()  # what is there stays there: the collector need not look through it again and again
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn raises the signal again after draining; it has done its work by then
    _Announcing(settings, _greeting(listener, name, gate.asks)).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Bind before the model is loaded, so that a port in use is told at once."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except socket.gaierror:
        raise OpenmaiError(f"host={host}: no such address; use 127.0.0.1, or 0.0.0.0 to let other machines in") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OpenmaiError(f"port={port}: in use on {host}; choose another with --port, or --port 0 for any free one") from None
        raise OpenmaiError(f"{host}:{port}: cannot be listened on ({error.strerror}); choose another --host or --port") from None


class _Announcing(uvicorn.Server):
    """Says that it is ready when it is."""

    def __init__(self, config: uvicorn.Config, greeting: str) -> None:
        super().__init__(config)
        self.greeting = greeting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        say(self.greeting)


def _greeting(listener: socket.socket, name: str, has_key: bool) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    key = " -H 'Authorization: Bearer KEY'" if has_key else ""
    body = shlex.quote(f'{{"model": "{name}", "messages": [{{"role": "user", "content": "What does zip() do?"}}]}}')
    return (
        f"serving {name}: chat page at http://{host}:{port}/, API at http://{host}:{port}/v1\n"
        f"try:  curl http://{host}:{port}/v1/chat/completions{key} -H 'Content-Type: application/json' -d {body}"
    )
