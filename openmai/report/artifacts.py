"""The finished artifacts of a run, in the order in which they were made from each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmai.base.artifact import MANIFEST, Artifact
from openmai.base.errors import OpenmaiError

KIND = "report"


@dataclass(frozen=True)
class Run:
    """A run's artifacts, parents before children; other reports are left out."""

    name: str
    artifacts: list[Artifact]

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Open every finished artifact directly under `folder`; contents are not verified, as little of them is read.

        Raises OpenmaiError if there is none.
        """
        if not folder.is_dir():
            raise OpenmaiError(f"{folder}: no such folder; give the folder of a run, such as runs/laptop")
        found = [Artifact.load(path.parent, verify=False) for path in sorted(folder.glob(f"*/{MANIFEST}"))]
        artifacts = [artifact for artifact in found if artifact.kind != KIND]
        if not artifacts:
            raise OpenmaiError(f"{folder}: no finished step in it; make one with `openmai run recipes/laptop.yaml`")
        return cls(folder.resolve().name, _by_lineage(artifacts))

    def of(self, kind: str) -> list[Artifact]:
        """Return the artifacts of one kind."""
        return [artifact for artifact in self.artifacts if artifact.kind == kind]

    def parents(self, artifact: Artifact) -> list[Artifact]:
        """Return the artifacts of this run that `artifact` was made from, in its order."""
        return _parents(artifact, self.artifacts)

    def ancestors(self, artifact: Artifact) -> list[Artifact]:
        """Return `artifact` and everything it was made from, nearest first."""
        line = [artifact]
        for member in line:
            line += [parent for parent in self.parents(member) if parent not in line]
        return line

    def checkpoint_of(self, evaluation: Artifact) -> Artifact | None:
        """Return the checkpoint that an eval artifact measured, if it is part of this run."""
        return next((parent for parent in self.parents(evaluation) if parent.kind == "checkpoint"), None)


def _parents(artifact: Artifact, among: list[Artifact]) -> list[Artifact]:
    by_digest = {other.digest: other for other in reversed(among) if other is not artifact}
    return [by_digest[source["digest"]] for source in artifact.inputs if source["digest"] in by_digest]


def _by_lineage(artifacts: list[Artifact]) -> list[Artifact]:
    """Sort by the longest way from a source, then by time, so that parents stand before children."""
    depths: dict[Path, int] = {}

    def depth(artifact: Artifact, path: tuple[Path, ...] = ()) -> int:
        if artifact.path not in depths:
            parents = [parent for parent in _parents(artifact, artifacts) if parent.path not in path]
            depths[artifact.path] = 1 + max((depth(parent, (*path, artifact.path)) for parent in parents), default=0)
        return depths[artifact.path]

    return sorted(artifacts, key=lambda artifact: (depth(artifact), artifact.created, artifact.path.name))


def role(checkpoint: Artifact) -> str:
    """Return how a checkpoint was trained: pretrain, dpo or sft; told by its metrics, as step names are free."""
    metrics: dict[str, Any] = checkpoint.metrics
    if "val_bpb" in metrics:
        return "pretrain"
    return "dpo" if "val_margin" in metrics else "sft"


def lead_of(run: Run) -> tuple[Artifact | None, Artifact | None]:
    """Return the checkpoint that the headline is about, the last pretrained one, and the last eval artifact."""
    pretrained = [checkpoint for checkpoint in run.of("checkpoint") if role(checkpoint) == "pretrain"]
    evals = run.of("eval")
    return (pretrained[-1] if pretrained else None), (evals[-1] if evals else None)
