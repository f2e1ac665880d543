"""What a suspended path is told apart by."""

from collections.abc import Hashable
from types import TracebackType
from typing import Any

from kvmarch.explore.cells import Cells, Image
from kvmarch.explore.standpoint import standpoint
from kvmarch.machine.steps import Path, op


@op(name="step")
def _step() -> None:
    """Do nothing: it is only stood at."""


class _Block:
    """A block whose end is a step."""

    async def __aenter__(self) -> None:
        """Begin without a step."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await _step()


def _stand(path: Path[Any]) -> Hashable:
    """Go to a path's first step and return where it stands."""
    path.send(None)
    found = standpoint(path, Cells(Image([])))
    path.close()
    return found


async def _returns(value: Any) -> Any:
    async with _Block():
        return value


def test_value_that_a_block_returns_counts() -> None:
    # Nothing but the interpreter's stack holds it while the block ends.
    assert _stand(_returns("hlt")) != _stand(_returns("mmio"))
    assert _stand(_returns((1, 2))) != _stand(_returns((1, 3)))
    assert _stand(_returns("hlt")) == _stand(_returns("hlt"))


async def _forgets(value: int) -> None:
    assert value
    await _step()


def test_local_that_is_read_no_more_does_not_count() -> None:
    assert _stand(_forgets(1)) == _stand(_forgets(2))


async def _tries(_spins: int) -> None:
    while _spins:
        await _step()
        _spins -= 1


def test_attempts_do_not_count() -> None:
    assert _stand(_tries(1)) == _stand(_tries(2))


async def _outer(first: int) -> None:
    async def inner() -> None:
        # ``first`` is of the frame around it; ``second`` is set between the steps.
        await _step()
        second = 2
        await _step()
        assert first + second

    await inner()


def test_when_a_frame_was_looked_at_does_not_count() -> None:
    seldom, often = _outer(1), _outer(1)
    cells = Cells(Image([]))

    often.send(None)
    standpoint(often, cells)
    for path in (seldom, often, seldom):
        path.send(None)

    assert standpoint(seldom, cells) == standpoint(often, cells)
    seldom.close()
    often.close()
