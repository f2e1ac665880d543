"""Tier 2: the layout of a walk leads where the architecture's own walk does."""

__all__ = ["test_the_layout_of_a_walk_leads_to_the_entry"]

import pytest

from kvmarch.testing.bench import Bench
from kvmarch.testing.contract.looks import maps

TIER = pytest.mark.kvmarch(tier=2)


@TIER
def test_the_layout_of_a_walk_leads_to_the_entry(kvm: Bench) -> None:
    """Nothing is asked of an architecture that keeps no tree, or does not tell."""
    layout = kvm.k.walk.fn(kvm.k, kvm.vm.options)
    if layout is None:
        return
    kvm.access(3, "write")
    kvm.access(4, "read")
    size = layout.entry_bytes
    root, _ = kvm.k.leaf_table.fn(kvm.vm, 0, layout.levels[0].level)
    assert root % layout.alignment == 0

    for gfn in (3, 4, 5):
        table, gpa = root, gfn << layout.page_shift
        for level in layout.levels:
            index = gpa >> level.shift & (1 << level.bits) - 1
            place = kvm.k.leaf_table.fn(kvm.vm, gfn, level.level)
            if place is None:
                # The host's own table, to which the guest's lead.
                assert level is not layout.levels[0]
                return
            there, at = place
            assert there + at * size == table + index * size
            entry = kvm.vm.tables.at(there).get(at)
            rule = next(r for r in level.rules if entry & r.mask == r.value)
            if rule.role != "table":
                break
            table = rule.address_of(entry)
        assert (entry, level.level) == kvm.k.entry.fn(kvm.vm, gfn)
        mapped = maps(kvm, gfn)
        assert (rule.role in {"leaf", "kept"}) == mapped
        if mapped:
            inside = (1 << level.leaf_shift(rule)) - 1
            pa = rule.address_of(entry) | gpa & inside
            assert pa >> layout.page_shift == kvm.pfn(gfn)
