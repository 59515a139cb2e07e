"""Independent pieces of work on the processes of this machine, or on a Ray cluster: the same function, the same results, in order."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Literal, TypeVar

from openmai.base.errors import OpenmaiError
from openmai.base.progress import say

Result = TypeVar("Result")
_RETRIES = 8  # of a task whose machine went away
_WATCH_SECONDS = 1.0


def run_tasks(
    function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], runner: Literal["local", "ray"], workers: int, address: str
) -> Iterator[tuple[int, Result]]:
    """Yield (number, function(*task)) as tasks finish; every task runs to its end even if the process or machine it was on is lost.

    Raises OpenmaiError for a Ray cluster that cannot be reached, and whatever `function` raises.
    """
    if runner == "ray":
        yield from _on_ray(function, tasks, workers, address)
    elif workers == 1 or len(tasks) < 2:
        for number, task in enumerate(tasks):
            yield number, function(*task)
    else:
        with ProcessPoolExecutor(min(workers, len(tasks)), multiprocessing.get_context("spawn")) as pool:
            yield from enumerate(pool.map(_apply, [function] * len(tasks), tasks))


def _apply(function: Callable[..., Result], task: tuple[Any, ...]) -> Result:
    return function(*task)


def _on_ray(function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], workers: int, address: str) -> Iterator[tuple[int, Result]]:
    ray = connect(address)
    remote = ray.remote(num_cpus=workers, max_retries=_RETRIES)(function)
    left = list(enumerate(tasks))[::-1]
    pending: dict[Any, int] = {}
    try:
        while left or pending:
            room = 2 * max(1, cluster_cpus() // workers)  # one running and one waiting per place
            while left and len(pending) < room:
                number, task = left.pop()
                pending[remote.remote(*task)] = number
            ready, _ = ray.wait(list(pending), timeout=5.0)
            for reference in ready:
                number = pending.pop(reference)
                try:
                    yield number, ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause if isinstance(error.cause, OpenmaiError) else error from None
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)


def run_on_whole_cluster(function: Callable[..., Result], *arguments: Any, address: str) -> Result:
    """Return function(*arguments) of a process of its own that is connected to the cluster; started anew when a machine is lost.

    For queries that use all machines at once and would wait forever for one that is gone, as Daft 0.7.26 does.
    """
    ray = connect(address)
    context, cluster = multiprocessing.get_context("spawn"), ray.get_runtime_context().gcs_address
    for _ in range(_RETRIES):
        machines = _machines(ray)
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(theirs, cluster, function, arguments), daemon=True)
        process.start()
        theirs.close()
        try:
            while machines <= _machines(ray):
                if mine.poll(_WATCH_SECONDS):
                    return mine.recv()
        except EOFError:
            process.join()
            raise RuntimeError(f"a query on the cluster died (exit code {process.exitcode}); its error stands above") from None
        finally:
            process.kill()
            process.join()
            mine.close()
        say("a machine of the cluster is lost; the query begins anew on the others")
    raise OpenmaiError(f"the cluster lost machines {_RETRIES} times during one query; build again when it is stable")


def _machines(ray: Any) -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _answer(pipe: Connection, address: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    connect(address)
    pipe.send(function(*arguments))


def cluster_cpus() -> int:
    """Return the number of CPUs of the Ray cluster that this process is connected to."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def connect(address: str) -> Any:
    """Return the module ray, connected to the cluster at `address` ("local" starts one here)."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise OpenmaiError("runner=ray: needs the package ray; pip install 'openmai[cluster]', or use runner=local") from None
    if not ray.is_initialized():
        try:
            ray.init(address=None if address == "local" else address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            reason = str(error).splitlines()[0]
            raise OpenmaiError(f"address={address}: no Ray cluster there ({reason}); start one with `ray start --head`") from None
    return ray
