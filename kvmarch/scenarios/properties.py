"""Properties: the ones that are always on, and those that a scenario adds.

A scenario's property is one Python expression, limited to names, attributes,
subscripts, comparisons, arithmetic, ``and``/``or``/``not`` and ``any``/``all``.
"""

__all__ = [
    "ALWAYS_ON",
    "ASKED",
    "Property",
    "asks_for",
    "check",
    "compile_bad",
    "compiled",
]

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvmarch.errors import ScenarioError
from kvmarch.machine.host import PFN_SHIFT, PRESENT

if TYPE_CHECKING:
    from kvmarch.scenarios.records import Scenario
    from kvmarch.scenarios.verbs import Context


@dataclass(frozen=True, slots=True)
class Property:
    """Something that must hold: its id, a sentence, and the rule that it comes from."""

    id: str
    sentence: str
    source: str


ALWAYS_ON = (
    Property(
        "freed-page",
        "no access, page mark or cache reaches a host page after it was freed",
        "generic facts 2.14",
    ),
    Property(
        "touched-after-start",
        "between the return of start() and end() nothing reaches the range's old pages",
        "generic facts 5, P1",
    ),
    Property(
        "stale-permission",
        "no translation allows what the host PTE does not, outside an invalidation",
        "generic facts 2.14",
    ),
    Property(
        "no-slot",
        "no access reaches a page through a gfn without a memslot",
        "generic facts D14",
    ),
    Property(
        "lost-dirty",
        "a page written while logging is on appears in this log or a later one",
        "generic facts 2.12",
    ),
    Property(
        "stale-mmio",
        "no access to a gfn with a slot is answered as MMIO after the slot is visible",
        "generic facts D1",
    ),
    Property(
        "flush-owed",
        "nobody unlocks mmu_lock, enters the guest or returns with a flush unpaid",
        "x86 facts 3.8",
    ),
    Property(
        "break-before-make",
        "a live entry changes only as its format allows",
        "arm64 facts 2.1",
    ),
    Property(
        "table-memory",
        "table pages are neither used after free nor freed twice",
        "cross-arch facts 14",
    ),
    Property(
        "balanced",
        "starts and ends balance; counters never go negative",
        "generic facts 2.3",
    ),
    Property(
        "locks",
        "right lock, right mode, right order, no sleep in atomic context, no grace "
        "period inside its own reader",
        "generic facts 1.5",
    ),
    Property("warn", "no WARN_ON or BUG_ON of the modelled code fires", "generic 2.5"),
    Property("ends", "every task can finish", "generic facts 2.11"),
)
"""The properties that every run checks."""

_ALLOWED = (
    ast.Expression,
    ast.BoolOp,
    ast.And,
    ast.Or,
    ast.UnaryOp,
    ast.Not,
    ast.USub,
    ast.BinOp,
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.FloorDiv,
    ast.Mod,
    ast.LShift,
    ast.RShift,
    ast.BitAnd,
    ast.BitOr,
    ast.Compare,
    ast.Eq,
    ast.NotEq,
    ast.Lt,
    ast.LtE,
    ast.Gt,
    ast.GtE,
    ast.In,
    ast.NotIn,
    ast.Is,
    ast.IsNot,
    ast.Name,
    ast.Load,
    ast.Store,
    ast.Attribute,
    ast.Subscript,
    ast.Constant,
    ast.Call,
    ast.GeneratorExp,
    ast.comprehension,
    ast.Tuple,
)

ASKED = ("always", "at-rest")
"""When a scenario's property is asked: after every step, or at the end."""

Test = Callable[[dict[str, Any]], Any]
_FAILS = (
    NameError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
)
"""What an expression may do wrong when it is evaluated."""


def compile_bad(text: str) -> Test:
    """Return an expression as a function of the names it uses.

    :raises ScenarioError: it does not parse, or uses more than is allowed.
    """
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ScenarioError(f"{text!r} is no expression: {error.args[0]}") from None
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED):
            raise ScenarioError(f"{text!r}: {type(node).__name__} is not allowed")
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            raise ScenarioError(f"{text!r}: attribute {node.attr} is not allowed")
        if isinstance(node, ast.Call) and not (
            isinstance(node.func, ast.Name) and node.func.id in {"any", "all"}
        ):
            raise ScenarioError(f"{text!r}: only any() and all() may be called")
    code = compile(tree, "<property>", "eval")
    builtins = {"__builtins__": {}, "any": any, "all": all}
    # ast.literal_eval() knows no names; this tree was checked node by node just above.
    return lambda names: eval(code, {**builtins, **names})  # noqa: S307 - checked


def asks_for(text: str, name: str) -> bool:
    """Return whether an expression looks at an attribute of that name."""
    return any(
        isinstance(node, ast.Attribute) and node.attr == name
        for node in ast.walk(ast.parse(text, mode="eval"))
    )


def compiled(scenario: "Scenario", ask: str) -> tuple[tuple[str, Test], ...]:
    """Return the scenario's properties that are asked at a moment, compiled."""
    return tuple(
        (name, compile_bad(bad))
        for name, (when, bad) in scenario.bad.items()
        if when == ask
    )


class _HostView:
    """``host[hva]`` is the pfn that the host maps there, or None."""

    def __init__(self, context: "Context") -> None:
        self._mm = context.machine.mm

    def __getitem__(self, hva: int) -> int | None:
        entry = self._mm.pte(hva >> self._mm.page_shift)
        return entry >> PFN_SHIFT if entry & PRESENT else None


class _EntryView:
    """``entry[gfn]`` is the lowest stage-2 entry of a gfn, as a number."""

    def __init__(self, context: "Context") -> None:
        self._vm = context.machine.vm

    def __getitem__(self, gfn: int) -> int:
        return int(self._vm.k.entry.fn(self._vm, gfn)[0])


def _names(context: "Context") -> dict[str, Any]:
    return {
        "vm": context.machine.vm,
        "vms": context.machine.vms,
        "vcpus": context.machine.vm.vcpus,
        "host": _HostView(context),
        "entry": _EntryView(context),
        **context.gpcs,
    }


def _value(what: str, test: Test, names: dict[str, Any]) -> Any:
    try:
        return test(names)
    except _FAILS as error:
        raise ScenarioError(f"{what}: {error}") from None


def evaluate(text: str, context: "Context") -> Any:
    """Return the value of an expression over the machine as it is.

    :raises ScenarioError: the expression has none.
    """
    return _value(f"value {text!r}", compile_bad(text), _names(context))


def check(tests: tuple[tuple[str, Test], ...], context: "Context") -> None:
    """Record each property whose expression is true now, once."""
    if not tests:
        return
    world = context.machine.world
    lost = {violation.property for violation in world.violations}
    names = _names(context)
    for name, test in tests:
        if name in lost:
            continue
        bad = _value(f"property {name}", test, names)
        if bad:
            world.violate(name, "the scenario's property is lost")
