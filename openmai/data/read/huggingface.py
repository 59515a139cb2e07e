"""Data sets of the Hugging Face Hub by name: the Hub lists the Parquet files of every public data set; they are downloaded once."""

from __future__ import annotations

import json
from pathlib import Path

from openmai.base.errors import OpenmaiError
from openmai.base.files import atomic_file, hash_value
from openmai.base.progress import Progress
from openmai.data.read.config import HuggingFace
from openmai.data.read.download import download


def fetch_huggingface(config: HuggingFace, downloads: Path) -> list[Path]:
    """Return the Parquet files of a split (https://huggingface.co/docs/dataset-viewer/parquet), downloading those that are missing.

    Raises OpenmaiError if the hub cannot be reached, or has no such data set, configuration or split.
    """
    listing = json.loads(download(f"{config.endpoint.rstrip('/')}/api/datasets/{config.name}/parquet"))
    if config.config not in listing:
        raise OpenmaiError(f"{config.name}: no configuration '{config.config}'; it has {', '.join(sorted(listing)) or 'none'}")
    if config.split not in listing[config.config]:
        raise OpenmaiError(f"{config.name}: no split '{config.split}'; it has {', '.join(sorted(listing[config.config]))}")
    urls = listing[config.config][config.split]
    folder = downloads / f"huggingface-{hash_value([config.name, config.config, config.split, urls])[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:05d}.parquet" for number in range(len(urls))]
    with Progress("hugging face", len(urls), "files") as progress:
        for url, path in zip(urls, files, strict=True):
            if not path.exists():
                data = download(url)
                with atomic_file(path) as file:
                    file.write(data)
            progress.advance()
    return files
