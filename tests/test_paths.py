"""What a task knows must be in its locals: an await stands alone.

A value that lies on the stack of a suspended frame is seen by nobody. So an await is a
whole statement or a whole right-hand side, and none stands in a comprehension.
"""

import ast
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
ALONE = (ast.Expr, ast.Assign, ast.AnnAssign, ast.Return)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FILES = sorted(
    path for folder in ("kvmarch", "plugins") for path in (TOP / folder).rglob("*.py")
)


def own_awaits(statement):
    """Yield the awaits of a statement that are in none of the statements inside it."""
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.Await):
            yield child
        if not isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from own_awaits(child)


def complaints(text):
    """Yield the lines at which an await is part of something larger, and why."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, COMPREHENSIONS) and any(
            isinstance(inner, ast.Await) for inner in ast.walk(node)
        ):
            yield node.lineno, "an await stands in a comprehension"
        if isinstance(node, ast.stmt | ast.match_case | ast.excepthandler):
            awaits = list(own_awaits(node))
            value = getattr(node, "value", None)
            if awaits and not (isinstance(node, ALONE) and awaits == [value]):
                line = awaits[0].lineno
                yield line, "an await is no whole statement or right-hand side"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TOP)))
def test_awaits_stand_alone(path):
    found = sorted(set(complaints(path.read_text("utf-8"))))

    assert found == [], f"{path.relative_to(TOP)}: {found}"


@pytest.mark.parametrize(
    "line",
    [
        "await a",
        "x = await a",
        "x: int = await a",
        "return await a",
        "x, y = await a(b, c)",
        "async with a.read(): await b",
        "for x in y: await a",
        "if x: y = await a",
    ],
)
def test_what_is_allowed(line):
    assert list(complaints(f"async def f():\n    {line}")) == []


@pytest.mark.parametrize(
    "line",
    [
        "if await a: pass",
        "while await a: pass",
        "x = await a + 1",
        "x += await a",
        "f(await a)",
        "return not await a",
        "x = [await a]",
        "for x in await a: pass",
        "async with await a: pass",
        "assert await a",
        "x = (await a).b",
        "x[await a] = 1",
        "x = await (await a)",
        "x = y if await a else z",
        "match await a:\n        case 1: pass",
    ],
)
def test_what_is_not(line):
    assert list(complaints(f"async def f():\n    {line}"))


def test_no_await_stands_in_a_comprehension():
    text = "async def f():\n    x = [await a for a in b]"

    assert (2, "an await stands in a comprehension") in complaints(text)
