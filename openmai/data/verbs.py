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
    "mix": Verb(
        config="openmai.data.mix.config:MixConfig",
        run="openmai.data.mix.mix:mix",
        help="mix documents into one, with the weights, epochs and phases that training follows, and a card",
    ),
    "decontaminate": Verb(
        config="openmai.data.decontaminate.config:DecontaminateConfig",
        run="openmai.data.decontaminate.decontaminate:decontaminate",
        help="find evaluation items in documents, and drop or mark the documents that hold them",
    ),
    "quality": Verb(
        config="openmai.data.filter.quality_config:QualityTrainConfig",
        run="openmai.data.filter.quality_train:train",
        help="train a quality score from good and bad texts, or from a teacher's grades",
    ),
    "grade": Verb(
        config="openmai.data.filter.quality_config:GradeConfig",
        run="openmai.data.filter.grade:grade",
        help="let a teacher behind an OpenAI-compatible endpoint grade documents from 0 to 5",
    ),
    "browse": Verb(
        config="openmai.data.browse.config:BrowseConfig",
        run="openmai.data.browse.browse:browse",
        help="look at what was kept and rejected, beside the original pages, and judge it",
    ),
}
