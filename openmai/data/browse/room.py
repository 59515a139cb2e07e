"""Everything that browsing one artifact needs, opened together: index, limits, originals, judgements."""

from __future__ import annotations

import json
from typing import Any

from openmai.base.artifact import Artifact
from openmai.base.errors import OpenmaiError
from openmai.base.files import read_json
from openmai.data.browse.config import BrowseConfig
from openmai.data.browse.explain import Limits
from openmai.data.browse.index import KEPT, Index
from openmai.data.browse.judgements import Judgements, agreement
from openmai.data.browse.originals import Originals
from openmai.data.document import KIND, Raw


class Room:
    """An artifact and what a person says of it."""

    def __init__(self, config: BrowseConfig) -> None:
        """Open the artifact and take up earlier judgements. Raises OpenmaiError if these would change the artifact."""
        self.config = config
        path = config.judgements_file
        if path.resolve().is_relative_to(config.documents.resolve()):
            raise OpenmaiError(f"judgements={path}: inside the artifact, which must not change; choose a file outside of it")
        self.artifact = Artifact.load(config.documents, kind=KIND, verify=False)
        self.index = Index(self.artifact)
        self.limits, self.originals = Limits(self.artifact), Originals(self.artifact)
        self.judgements = Judgements(path)
        known = ((self.index.find(identity), verdict) for identity, verdict in self.judgements.verdicts.items())
        self.judged: dict[int, str] = {row: verdict for row, verdict in known if row is not None}

    def about(self, source: str = "") -> dict[str, Any]:
        """Return the funnel of all sources or of one, and what there is to choose from."""
        counts = self.index.counts(source)
        return {
            "name": self.artifact.path.resolve().name,
            "judgements": str(self.judgements.path),
            "seed": self.config.seed,
            "documents": sum(counts.values()),
            "kept": counts[KEPT],
            "steps": self.steps(counts),
            "sources": {name: len(self.index.select("all", name)) for name in self.index.sources.names},
            "damaged": self._funnel().get("damaged", []),
        }

    def steps(self, counts: dict[str, int]) -> list[dict[str, Any]]:
        """Return the steps in the order in which they were applied, each with what its rules rejected."""
        titles = {step["step"]: step["title"] for step in self._funnel().get("steps", [])}
        left, steps = sum(counts.values()), []
        for family in dict.fromkeys([*titles, *(rule.split(".")[0] for rule in counts if rule)]):
            rules = {rule: count for rule, count in counts.items() if rule and rule.split(".")[0] == family and count}
            ordered = dict(sorted(rules.items(), key=lambda item: (-item[1], item[0])))
            left -= sum(rules.values())
            steps.append({"step": family, "title": titles.get(family, family), "out": left, "rules": ordered})
        return steps

    def _funnel(self) -> dict[str, Any]:
        return read_json(self.artifact.path / "funnel.json") if "funnel.json" in self.artifact.files else {}

    def original(self, number: int) -> Raw:
        """Return the record that a document was made of. Raises OpenmaiError if it is gone."""
        row = self.index.read([number], ["source", "url", "meta"])[0]
        return self.originals.find(row["source"], row["url"], json.loads(row["meta"] or "{}"))

    def judge(self, identity: str, verdict: str) -> None:
        """Note a judgement. Raises OpenmaiError for a document that is not here."""
        number = self.index.find(identity)
        if number is None:
            raise OpenmaiError(f"id={identity}: no such document in {self.artifact.path}")
        row = self.index.read([number], ["source", *(["text"] if self.config.texts else [])])[0]
        self.judgements.add(identity, verdict, rule=self.index.rule_of(number), source=row["source"], **_text(row))
        self.judged.pop(number, None)
        if identity in self.judgements.verdicts:
            self.judged[number] = verdict

    def agreement(self) -> dict[str, Any]:
        """Return how far the judgements agree with what this artifact decided, in whichever artifact they were given."""
        return agreement((self.index.rule_of(row), verdict) for row, verdict in self.judged.items())


def _text(row: dict[str, Any]) -> dict[str, str]:
    return {"text": row["text"]} if "text" in row else {}
