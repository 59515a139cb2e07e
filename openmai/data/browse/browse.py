"""`openmai data browse`: open an artifact, then serve its page until told to stop, or write the overview."""

from __future__ import annotations

import errno
import signal
import socket

import uvicorn

from openmai.base.errors import OpenmaiError
from openmai.base.progress import say
from openmai.data.browse.app import create_app
from openmai.data.browse.config import BrowseConfig
from openmai.data.browse.overview import write_overview
from openmai.data.browse.room import Room


def browse(config: BrowseConfig) -> None:
    """Serve the page for `config.documents` until SIGTERM or Ctrl-C; with `config.page` write the overview instead."""
    if config.page is not None:
        write_overview(Room(config), config.page)
        say(f"overview: {config.page}")
        return
    with listen(config.host, config.port) as listener:
        room = Room(config)
        host, port = listener.getsockname()[:2]
        everyone = host in ("0.0.0.0", "::")
        app = create_app(room, ["*"] if everyone else sorted({"127.0.0.1", "localhost", "[::1]", host, config.host}))
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        say(f"{len(room.index):,} documents: http://{shown}:{port}/, judgements in {room.judgements.path}; Ctrl-C ends")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # uvicorn raises the signal again after it has ended
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3)).run(sockets=[listener])
    say(f"stopped; {len(room.judged)} documents judged")


def listen(host: str, port: int) -> socket.socket:
    """Bind before the artifact is read, so that a port in use is told at once."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except socket.gaierror:
        raise OpenmaiError(f"host={host}: no such address; use 127.0.0.1, or 0.0.0.0 to let other machines in") from None
    except OSError as error:
        problem = "in use" if error.errno == errno.EADDRINUSE else f"cannot be listened on ({error.strerror})"
        raise OpenmaiError(f"port={port}: {problem} on {host}; choose another with --port, or --port 0 for any free one") from None
