"""What the tests of the contract look at."""

__all__ = ["flushes", "maps", "nowhere", "translate"]

from typing import Any

from kvmarch.kernel.vcpu import enter_guest
from kvmarch.machine.tlb import Translation
from kvmarch.testing.bench import Bench
from kvmarch.testing.cases import Case

FLUSHES = {"flush", "tlb_invalidate", "kvm_make_all_cpus_request"}
"""Events of a flush that is made."""


def translate(one: Bench, gfn: int, access: str = "read") -> Translation | None:
    """Enter the guest and walk; return the translation, or None if the walk faults."""
    one.do(enter_guest(one.vcpu))
    found = one.k.translate.fn(one.vcpu, gfn, access)
    return found if isinstance(found, Translation) else None


def maps(one: Bench, gfn: int) -> bool:
    """Return whether the lowest entry of a gfn leads to a page."""
    entry, level = one.k.entry.fn(one.vm, gfn)
    options = one.vm.options
    kind, _fields = one.k.decode.fn(one.k, options, entry, level)
    return any(
        row.maps and (row.kind, row.level) == (kind, level)
        for row in one.k.formats.fn(one.k, options)
    )


def nowhere(case: Case) -> str:
    """Return how an access ends where there is no memory."""
    return "mmio" if case.keeps("emulates-mmio") else "exception"


def flushes(one: Bench, path: Any) -> bool:
    """Run a path; return whether anything was flushed."""
    before = len(one.world.events)
    one.do(path)
    return any(event.name in FLUSHES for event in one.world.events[before:])
