"""Both engines on one program, and whether they agree."""

__all__ = ["Comparison", "compare_engines"]

from dataclasses import dataclass, field

from kvmarch.explore.ends import End, end_in
from kvmarch.explore.program import Program
from kvmarch.explore.search import Bounds, Search, explore
from kvmarch.explore.stateless import Traces, explore_stateless
from kvmarch.explore.verdict import verdict_of


@dataclass(slots=True)
class Comparison:
    """What both engines have found.

    :param differences: a sentence for each disagreement.
    """

    search: Search
    traces: Traces
    differences: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Return whether neither engine was cut: only then agreement says much."""
        return not (self.search.cut or self.traces.cut)


def compare_engines(
    program: Program, *, bounds: Bounds | None = None, always: bool = False
) -> Comparison:
    """Explore a program with states and without, and compare what comes out.

    Where one is cut, only what both must have seen is compared.

    :param always: ask the program's questions between all steps.
    """
    search = explore(program, bounds=bounds, always=always)
    traces = explore_stateless(program, bounds=bounds, always=always)
    comparison = Comparison(search, traces)
    comparison.differences = [
        *_differing_ends(search, traces),
        *_differing_verdicts(search, traces),
    ]
    return comparison


def _differing_ends(search: Search, traces: Traces) -> list[str]:
    with_states = {end_in(search.space, end) for end in search.ends | search.stuck}
    without = set(traces.ends)
    found = []
    if not search.cut:
        found += [
            f"{_show(end)} is reached by {_turns(traces.ends[end])} only without states"
            for end in without - with_states
        ]
    if not traces.cut:
        found += [
            f"{_show(end)} is reached only with states" for end in with_states - without
        ]
    return sorted(found)


def _show(end: End) -> str:
    values = ", ".join(sorted(f"{value!r}" for _key, value in end.values))
    waits = ", ".join(f"{name} at {step!r}" for name, step in end.waiting)
    return f"the end ({values})" + (f" with {waits} waiting" if waits else "")


def _turns(turns: tuple[tuple[str, int], ...]) -> str:
    return " ".join(f"{name}:{count}" for name, count in turns)


def _differing_verdicts(search: Search, traces: Traces) -> list[str]:
    found = []
    for name in sorted(search.found.keys() | traces.found.keys()):
        one, other = verdict_of(search, name).verdict, traces.verdict(name)
        if search.cut or traces.cut:
            # What one engine has seen, the other one may not deny if it is complete.
            one, other = _seen(one), _seen(other)
        if "unknown" not in {one, other} and one != other:
            found.append(f"{name}: {one} with states, {other} without")
    return found


def _seen(verdict: str) -> str:
    return "lost" if verdict in {"sometimes", "always"} else verdict
