"""PEER_PYTHON benchmarks/peers/datatrove_pipeline.py FOLDER_OF_WARCS OUT

Takes web archives to deduplicated documents with datatrove: extraction, quality filters, MinHash in its four stages, one task, one
worker. Run by benchmarks/data_pipeline.py in an environment with `datatrove[processing,io]==0.10.1`, `spacy` and `lxml_html_clean`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader, WarcReader
from datatrove.pipeline.writers import JsonlWriter


def main() -> None:
    source, out = sys.argv[1], Path(sys.argv[2])
    stages = [
        [
            WarcReader(source, glob_pattern="*.warc.gz"),
            Trafilatura(),
            GopherRepetitionFilter(),
            C4QualityFilter(filter_no_terminal_punct=False),
            GopherQualityFilter(),
            FineWebQualityFilter(),
            JsonlWriter(str(out / "filtered")),
        ],
        [JsonlReader(str(out / "filtered")), MinhashDedupSignature(str(out / "signatures"))],
        [MinhashDedupBuckets(str(out / "signatures"), str(out / "buckets"))],
        [MinhashDedupCluster(str(out / "buckets"), str(out / "remove"))],
        [JsonlReader(str(out / "filtered")), MinhashDedupFilter(str(out / "remove")), JsonlWriter(str(out / "documents"))],
    ]
    for number, stage in enumerate(stages):
        LocalPipelineExecutor(stage, tasks=14 if number == 2 else 1, workers=1, logging_dir=str(out / f"log{number}")).run()


if __name__ == "__main__":
    main()
