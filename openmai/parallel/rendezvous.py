"""The store through which the processes of `torchrun` find each other, anew after every restart."""

from __future__ import annotations

import os
import secrets
import time
from datetime import timedelta

import torch.distributed as dist

_KEY, _NAME = "openmai/store", "name"


def fresh_store(timeout: timedelta) -> dist.Store | None:
    """Return a store that nobody has used before, or None where PyTorch makes one itself.

    By default the workers share the agent's store, and it still holds where the processes of the attempt before listened: after a restart
    they look for each other there until they time out (pytorch#135712, pytorch#167288; torch 2.13 does). Nothing that they are told
    says which attempt it is, as the count of restarts is each agent's own. So the first process opens a store of its own and leaves its
    address in the agent's; what another attempt has left there leads nowhere, for its processes have ended.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, rank, size = os.environ["MASTER_ADDR"], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    agent = dist.TCPStore(address, int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout)
    if rank == 0:
        store = dist.TCPStore(address, 0, size, is_master=True, timeout=timeout, wait_for_workers=False)
        name = secrets.token_hex(8)
        store.set(_NAME, name)
        agent.set(_KEY, f"{store.port} {name}")
        return store
    limit = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < limit:
        port, name = agent.get(_KEY).decode().split()
        try:
            store = dist.TCPStore(address, int(port), size, is_master=False, timeout=timedelta(seconds=2))
            if store.get(_NAME).decode() == name:
                store.set_timeout(timeout)
                return store
        except (dist.DistNetworkError, dist.DistStoreError):
            time.sleep(0.1)
    raise TimeoutError(f"rank {rank} has not found the first process at {address} within {timeout}")
