"""Pages of a Common Crawl: its URL index names the records, range requests bring them; they are kept as a local web archive."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlencode

from openmai.base.errors import OpenmaiError
from openmai.base.files import atomic_file, hash_value
from openmai.base.progress import Progress
from openmai.data.read.config import CommonCrawl
from openmai.data.read.download import download


def fetch_commoncrawl(config: CommonCrawl, downloads: Path) -> Path:
    """Return a `.warc.gz` with the records that match, in the index's order (https://commoncrawl.org/cdxj-index).

    Records that an interrupted attempt brought are kept. Raises OpenmaiError if the servers cannot be reached or nothing matches.
    """
    name = hash_value(config.model_dump())[:16]
    target = downloads / f"commoncrawl-{name}.warc.gz"
    if target.exists():
        return target
    records = _look_up(config)
    folder = downloads / f"commoncrawl-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    with Progress("common crawl", len(records), "records") as progress:
        for number, record in enumerate(records):
            piece = folder / f"{number:08d}.gz"
            if not piece.exists():
                first = int(record["offset"])
                last = first + int(record["length"]) - 1
                data = download(f"{config.files.rstrip('/')}/{record['filename']}", {"Range": f"bytes={first}-{last}"})
                with atomic_file(piece) as file:
                    file.write(data)
            progress.advance()
    with atomic_file(target) as file:
        for number in range(len(records)):
            file.write((folder / f"{number:08d}.gz").read_bytes())
    return target


def _look_up(config: CommonCrawl) -> list[dict[str, str]]:
    query = urlencode({"url": config.url, "output": "json", "limit": config.limit, "filter": "=status:200"})
    address = f"{config.index.rstrip('/')}/{config.crawl}-index?{query}"
    answer = download(address)
    records = [json.loads(line) for line in answer.decode().splitlines() if line.strip()]
    records = [record for record in records if "filename" in record][: config.limit]
    if not records:
        raise OpenmaiError(f"{config.crawl}: its index has no page for {config.url}; check crawl id and URL pattern")
    return records
