"""pytest -m cluster tests/test_data_cluster.py: the data engine on a Ray cluster of two machines (processes here), one of which is lost."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_data_build import contents, make, write_sources

from openmai.base.errors import OpenmaiError
from openmai.data.build import build
from openmai.data.engine import tasks

ray = pytest.importorskip("ray", reason="needs the extra 'cluster'")
pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 << 20})
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def write_books(folder: Path) -> list[dict[str, Any]]:
    """Write more files than the cluster has places, so that work is left when a machine goes."""
    sources = write_sources(folder)
    lines = (folder / "lessons.jsonl").read_text().splitlines()
    for number in range(6):
        rows = [json.loads(line) for line in lines]
        text = "".join(json.dumps({"text": f"{row['text']} Book {number}."}) + "\n" for row in rows)
        (folder / f"book-{number:02d}.jsonl").write_text(text)
    return [*sources, {"name": "books", "path": str(folder / "book-*.jsonl"), "trusted": True}]


def test_the_same_bytes_by_queries_on_the_whole_cluster(cluster: Any, tmp_path: Path) -> None:
    pytest.importorskip("daft", reason="needs the extra 'cluster'")
    sources = write_sources(tmp_path / "in")
    build(make(tmp_path / "there", sources, runner="ray", compare="daft"))
    build(make(tmp_path / "here", sources))
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_the_same_bytes_though_a_machine_is_lost(cluster: Any, tmp_path: Path) -> None:
    sources, parts = write_books(tmp_path / "in"), tmp_path / "there.parts"

    def lose() -> None:
        while not parts.exists() or len(list(parts.glob("*.parquet"))) < 3:
            time.sleep(0.01)
        cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)

    thread = threading.Thread(target=lose)
    thread.start()
    build(make(tmp_path / "there", sources, runner="ray", shard_megabytes=0.001))
    thread.join()
    build(make(tmp_path / "here", sources, shard_megabytes=0.001))
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert len(contents(tmp_path / "there")) > 10


def wait_the_first_time(marker: Path) -> str:
    """Never answer, unless asked again."""
    if not marker.exists():
        marker.touch()
        threading.Event().wait()
    return "answer"


def test_a_query_begins_anew_when_a_machine_is_lost(cluster: Any, tmp_path: Path) -> None:
    node, marker = cluster.add_node(num_cpus=0, object_store_memory=80 << 20), tmp_path / "begun"

    def lose() -> None:
        while not marker.exists():
            time.sleep(0.01)
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=lose)
    thread.start()
    assert tasks.run_on_whole_cluster(wait_the_first_time, marker, address="auto") == "answer"
    thread.join()


def test_errors_arrive_as_they_are(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "one"}\n{"text": ')
    with pytest.raises(OpenmaiError, match=r"bad.jsonl: line 2 is not valid JSON.*on_error: skip"):
        build(make(tmp_path / "out", [{"name": "bad", "path": str(tmp_path / "bad.jsonl")}], runner="ray"))


def test_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**settings: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(OpenmaiError, match=r"address=auto: no Ray cluster there.*ray start --head"):
        tasks.connect("auto")
