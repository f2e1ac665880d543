"""What the search says about a property: lost never, sometimes, always, or unknown."""

__all__ = ["Verdict", "verdict_of", "verdicts"]

from dataclasses import dataclass

from kvmarch.explore.node import BLOCKED_STEP
from kvmarch.explore.search import Found, Search


@dataclass(frozen=True, slots=True)
class Verdict:
    """One property's verdict.

    :param verdict: ``never``, ``sometimes``, ``always`` or ``unknown``.
    :param found: where it is lost; None if it is not.
    """

    property: str
    verdict: str
    found: Found | None = None


def verdict_of(search: Search, name: str) -> Verdict:
    """Return the verdict on one property."""
    found = search.found.get(name)
    if found is None:
        return Verdict(name, "unknown" if search.cut else "never")
    if search.cut:
        # That it can be lost is certain; whether it always is, is not.
        return Verdict(name, "sometimes", found)
    return Verdict(
        name, "sometimes" if _is_avoidable(search, name) else "always", found
    )


def verdicts(search: Search) -> list[Verdict]:
    """Return the verdict on every property that is lost somewhere, shortest first."""
    names = sorted(search.found, key=lambda name: (search.found[name].length, name))
    return [verdict_of(search, name) for name in names]


def _is_avoidable(search: Search, name: str) -> bool:
    """Return whether some complete schedule does not lose the property."""
    space = search.space
    lost_at_end = search.lost_at.get(name, set())
    seen = {space.initial}
    stack = [space.initial]
    if space.initial in lost_at_end:
        return False
    while stack:
        state = stack.pop()
        if state in search.ends or state in search.stuck:
            return True
        for i in range(space.count):
            change = space.known(state, i)
            if change is None or change is BLOCKED_STEP:
                continue
            lost = getattr(change, "violations", ())
            if any(violation.property == name for violation in lost):
                continue
            after = space.sorted(state + change)
            # A reduced search knows transitions that it has not taken: nobody has
            # looked at the states to which they lead.
            if after not in space.parents:
                continue
            if after not in seen and after not in lost_at_end:
                seen.add(after)
                stack.append(after)
    return False
