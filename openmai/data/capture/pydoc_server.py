"""Python's own documentation server as a child process that is asked one page at a time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from openmai.base.errors import OpenmaiError

# Like `python -m pydoc -p 0`, but a module that is already imported stays: pydoc would import it anew for every page, which extension
# modules such as those of numpy and torch do not survive.
_SERVE = """
import pydoc
find = pydoc.locate
pydoc.locate = lambda path, forceload=0: find(path)
pydoc.browse(0, open_browser=False, hostname="127.0.0.1")
"""
_QUIET = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
_START_SECONDS = 60.0


class PageError(Exception):
    """A page that cannot be had; the message says why."""


class PydocServer:
    """Serves the documentation of this interpreter's packages on loopback; it ends with this process, whose pipe it reads."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.process: subprocess.Popen[bytes] | None = None
        self.folder = tempfile.TemporaryDirectory(prefix="openmai-pydoc-")
        self.port = 0

    def get(self, path: str) -> bytes:
        """Return the HTML of one page. Raises PageError if it takes too long or takes the server down, which is then started anew."""
        if self.process is None:
            self._start()
        try:
            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with direct.open(f"http://127.0.0.1:{self.port}/{path}", timeout=self.timeout) as page:
                return page.read()
        except TimeoutError:
            problem = f"no answer in {self.timeout:g} s"
        except OSError as error:
            if isinstance(getattr(error, "reason", None), TimeoutError):
                problem = f"no answer in {self.timeout:g} s"
            else:
                problem = "the server broke off"
        self.stop()
        raise PageError(problem)

    def stop(self) -> None:
        """End the server."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def close(self) -> None:
        """End the server and remove its folder."""
        self.stop()
        self.folder.cleanup()

    def _start(self) -> None:
        log = Path(self.folder.name) / "server.log"
        work = Path(self.folder.name) / "work"
        work.mkdir(exist_ok=True)
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _SERVE],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=work,
                env=os.environ | _QUIET,
            )
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            ready = re.search(rb"http://127\.0\.0\.1:(\d+)/", log.read_bytes())
            if ready:
                self.port = int(ready[1])
                return
            time.sleep(0.02)
        self.stop()
        last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
        raise OpenmaiError(f"documentation server of {sys.executable}: does not start ({last[0]}); try `python -m pydoc -p 0`")
