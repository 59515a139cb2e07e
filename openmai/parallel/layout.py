"""How the processes of a run divide the work; plain data, checked before anything is built."""

from __future__ import annotations

from pydantic import Field

from openmai.base.config import Config
from openmai.base.errors import OpenmaiError


class Layout(Config):
    """Processes = dp_replicate x dp_shard. Each takes its share of every batch."""

    dp_replicate: int = Field(1, gt=0)
    "groups of processes that each hold the whole model between them (HSDP when dp_shard is above 1)"
    dp_shard: int = Field(0, ge=0)
    "processes that divide weights, gradients and optimizer state (FSDP); 0: as many as are left"

    def resolve(self, processes: int, batch_rows: int, micro_rows: int) -> Layout:
        """Return the layout with every number known.

        Raises OpenmaiError that names the nearest layouts if it does not fit the number of processes or the rows of a batch.
        """
        shard = self.dp_shard or max(1, processes // self.dp_replicate)
        if self.dp_replicate * shard != processes:
            fitting = ", ".join(f"{n} x {processes // n}" for n in range(1, processes + 1) if processes % n == 0)
            raise OpenmaiError(
                f"layout: dp_replicate={self.dp_replicate} x dp_shard={shard} is not {processes}, the number of processes; "
                f"choose dp_replicate x dp_shard among {fitting}"
            )
        if batch_rows % (processes * micro_rows):
            below = [n for n in range(processes, 0, -1) if batch_rows % (n * micro_rows) == 0]
            raise OpenmaiError(
                f"batch_rows={batch_rows} cannot be divided among {processes} processes in micro-batches of micro_rows={micro_rows}; "
                f"take {below[0] if below else 1} processes, or a multiple of {processes * micro_rows} rows"
            )
        return Layout(dp_replicate=self.dp_replicate, dp_shard=shard)
