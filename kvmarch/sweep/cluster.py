"""Explore on a Dask cluster: one that is there, or one embedded in this process."""

__all__ = ["at", "embedded", "is_installed"]

import importlib.util
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

from kvmarch.errors import SweepError

A = TypeVar("A")
B = TypeVar("B")

Backend = Callable[[Sequence[A]], Iterator[tuple[int, B | None]]]

AHEAD = 4
"""Cells that wait at the scheduler for each thread of a worker."""

CONNECT = 10
"""Seconds within which a scheduler must answer."""

SCHEMES = ("tcp", "tls", "ws", "wss")
"""How a scheduler may be talked to; all of them listen at a port."""


def is_installed() -> bool:
    """Return whether the extra ``cluster`` is there."""
    return importlib.util.find_spec("distributed") is not None


def at(function: Callable[[A], B], address: str) -> Backend[A, B]:
    """Explore on the cluster of a scheduler.

    :raises SweepError: the extra ``cluster`` is not installed, or nobody is there.
    """
    if not is_installed():
        raise SweepError(
            "--scheduler needs Dask, which is not installed: "
            "pip install 'kvmarch[cluster]'; --jobs does without"
        )
    _knock(address)
    return lambda tasks: _explore(function, tasks, address, 0)


def _knock(address: str) -> None:
    """Refuse an address at which nobody listens, before anything has begun."""
    try:
        parts = urlsplit(address if "://" in address else f"tcp://{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or port is None or parts.scheme not in SCHEMES:
        raise SweepError(
            f"--scheduler {address}: is no address such as tcp://localhost:8786"
        )
    try:
        socket.create_connection((host, port), CONNECT).close()
    except OSError as error:
        why = error.strerror or error
        raise SweepError(f"--scheduler {address}: nobody is there ({why})") from None


def embedded(function: Callable[[A], B], workers: int) -> Backend[A, B]:
    """Explore on a cluster of this machine, which lives as long as the sweep."""
    return lambda tasks: _explore(function, tasks, "", min(workers, len(tasks)))


def _explore(
    function: Callable[[A], B], tasks: Sequence[A], address: str, workers: int
) -> Iterator[tuple[int, B | None]]:
    import distributed

    # What is wrong is said in one line, not in Dask's; each of its modules has a level.
    for name in tuple(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    with ExitStack() as stack:
        if workers:
            # A search watches classes of its whole process: one thread for each.
            local = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
            )
            address = stack.enter_context(local).scheduler_address
        try:
            client = distributed.Client(address, timeout=CONNECT, set_as_default=False)
        except (OSError, ValueError) as error:
            said = " ".join(str(error).split())
            raise SweepError(f"{address} is no scheduler: {said}") from None
        stack.callback(_close, client)
        yield from _stream(distributed, client, function, tasks)


def _close(client: Any) -> None:
    # The connection may be gone, which has been told by then.
    with suppress(Exception):
        client.close()


def _stream(
    distributed: Any, client: Any, function: Callable[[A], B], tasks: Sequence[A]
) -> Iterator[tuple[int, B | None]]:
    """Keep the workers busy, with not more at the scheduler than they need."""
    running: dict[Any, int] = {}
    ready = distributed.as_completed(loop=client.loop)
    waiting = iter(enumerate(tasks))

    def hand_out() -> None:
        threads = sum(client.nthreads().values())
        for number, task in waiting:
            # A cell is explored anew if asked again, whatever Dask remembers.
            future = client.submit(function, task, pure=False)
            running[future.key] = number
            ready.add(future)
            if len(running) >= max(threads, 1) * AHEAD:
                return

    _talk(hand_out)
    for future in ready:
        number = running.pop(future.key)
        yield number, _result(distributed, future)
        _talk(hand_out)


def _talk(hand_out: Callable[[], None]) -> None:
    """Ask the scheduler for something.

    :raises SweepError: nobody answers.
    """
    try:
        hand_out()
    except Exception:  # noqa: BLE001 - each way of losing it has an error of its own
        raise SweepError("the scheduler is gone") from None


def _result(distributed: Any, future: Any) -> Any:
    """Return what came out; None if the workers that tried it died."""
    try:
        return future.result()
    except SweepError:
        raise
    except distributed.KilledWorker:
        return None
    except (CancelledError, OSError):
        # What a cell raises is told in its outcome, so that this is the connection.
        raise SweepError("the scheduler is gone") from None
    except Exception as error:  # noqa: BLE001 - what a cluster raises is its own
        said = " ".join(str(error).split())
        raise SweepError(
            f"the cluster cannot explore ({type(error).__name__}: {said})"
        ) from None
