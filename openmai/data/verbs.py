"""The verbs of `openmai data`."""

from __future__ import annotations

from openmai.base.verb import Verb

VERBS = {
    "snapshot": Verb(
        config="openmai.data.capture.config:SnapshotConfig",
        run="openmai.data.capture.snapshot:snapshot",
        help="capture the documentation pages of this machine's Python packages into a .warc.gz",
    ),
    "crawl": Verb(
        config="openmai.data.capture.config:CrawlConfig",
        run="openmai.data.capture.crawl:crawl",
        help="capture the pages of one site, politely, into a .warc.gz",
    ),
    "build": Verb(
        config="openmai.data.config:BuildConfig",
        run="openmai.data.build:build",
        help="turn web archives, files and data sets into clean, deduplicated documents",
    ),
    "decontaminate": Verb(
        config="openmai.data.decontaminate.config:DecontaminateConfig",
        run="openmai.data.decontaminate.decontaminate:decontaminate",
        help="find evaluation items in documents, and drop or mark the documents that hold them",
    ),
}
