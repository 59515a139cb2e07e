"""The overview: one HTML file without scripts, with the funnel and samples of what each rule rejected and of what was kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from openmai.base.files import atomic_file
from openmai.data.browse.index import sample
from openmai.data.browse.room import Room

_EXCERPT = 600


def write_overview(room: Room, path: Path) -> None:
    """Write the overview of an artifact; the same artifact, seed and judgements give the same file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    about = room.about()
    rules = [(rule, step["title"], count) for step in about["steps"] for rule, count in step["rules"].items()]
    groups = [_group(room, "kept", "", about["kept"]), *(_group(room, *rule) for rule in rules)]
    page = environment.get_template("overview.html.jinja").render(
        about=about, groups=groups, judged=room.agreement(), samples=room.config.samples
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, "w") as file:
        file.write(page)


def _group(room: Room, which: str, title: str, count: int) -> dict[str, Any]:
    chosen = [int(row) for row in sample(room.index.select(which), room.config.seed)[: room.config.samples]]
    rows = room.index.read(chosen, ["id", "url", "source", "text", "reason"])
    examples = [
        {
            "place": row["url"] or row["id"],
            "source": row["source"],
            "reason": row["reason"],
            "bytes": len(row["text"].encode()),
            "verdict": given,
        }
        | {"text": row["text"][:_EXCERPT], "is_cut": len(row["text"]) > _EXCERPT}
        for row, given in zip(rows, (room.judged.get(number, "") for number in chosen), strict=True)
    ]
    return {"which": which, "title": title, "count": count, "examples": examples}
