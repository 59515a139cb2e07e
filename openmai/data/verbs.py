"""The verbs of `openmai data`."""

from __future__ import annotations

from openmai.base.verb import Verb

VERBS = {
    "snapshot": Verb(
        config="openmai.data.capture.config:SnapshotConfig",
        run="openmai.data.capture.snapshot:snapshot",
        help="capture the documentation pages of this machine's Python packages into a .warc.gz",
    ),
    "build": Verb(
        config="openmai.data.config:BuildConfig",
        run="openmai.data.build:build",
        help="turn web archives, files and data sets into clean, deduplicated documents",
    ),
}
