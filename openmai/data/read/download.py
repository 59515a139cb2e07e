"""Downloads over HTTP with a few patient retries."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from openmai.base.errors import OpenmaiError

_TIMEOUT = 60.0
_WAITS = (1.0, 4.0)


def download(url: str, headers: dict[str, str] | None = None) -> bytes:
    """Return the body of `url`. Server errors are tried again; raises OpenmaiError if it cannot be had."""
    request = urllib.request.Request(url, headers={"User-Agent": "openmai", **(headers or {})})
    for wait in (*_WAITS, None):
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            if error.code < 500 or wait is None:
                raise OpenmaiError(f"{url}: the server answers {error.code} {error.reason}; check the name") from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise OpenmaiError(f"{urlsplit(url).netloc}: cannot be reached ({reason}); go online, or name local files") from None
        time.sleep(wait)
    raise AssertionError("unreachable")
