"""`openmai serve`, before PyTorch is loaded."""

from __future__ import annotations

import os

from openmai.serve.config import ServeConfig


def start(config: ServeConfig) -> None:
    """Say how long OpenMP's threads may wait, and serve.

    By default they look for work so long before they sleep that they take the processors from those who send answers and read them; not at
    all, and waking them takes as long as a step of one token. libgomp reads this when PyTorch is loaded.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from openmai.serve.server import serve

    serve(config)
