"""Aging: which leaves are looked at, and who flushes."""

import pytest

from kvmarch.kernel.reclaim import age
from kvmarch.machine.host import YOUNG

EVERY = (
    pytest.param((4, 4), id="v4.4"),
    pytest.param((4, 12), id="v4.12"),
    pytest.param((5, 9), id="v5.9"),
    pytest.param((5, 10), id="v5.10"),
    pytest.param((6, 1), id="v6.1"),
    pytest.param((6, 5), id="v6.5"),
    pytest.param((7, 2), id="v7.2"),
)


def ask(m, how, first, stop):
    """Ask the guest alone: the host's own flag is cleared before."""
    for vpn in m.mm.ptes:
        m.mm.ptes[vpn] &= ~YOUNG
    for vpn in m.mm.pmds:
        m.mm.pmds[vpn] &= ~YOUNG
    return m.do(age(m.mm, m.hva(first), m.hva(stop), how))


@pytest.mark.parametrize("release", EVERY)
def test_young_once(machine, release):
    m = machine(release)
    m.slot()
    m.access(0)

    assert ask(m, "clear_flush_young", 0, 1) is True
    assert m.field(0, "af") == 0
    assert ask(m, "clear_flush_young", 0, 1) is False
    m.access(0)
    assert m.field(0, "af") == 1
    assert m.vcpu.exits == {"missing": 1, "access": 1}
    assert m.lost == []


@pytest.mark.parametrize("release", [pytest.param((4, 0), id="v4.0")])
def test_there_was_no_aging_before_v4_1(machine, release):
    m = machine(release)
    m.slot()
    m.access(0)

    assert ask(m, "clear_flush_young", 0, 1) is False
    assert m.field(0, "af") == 1


@pytest.mark.parametrize("release", EVERY)
def test_reclaim_flushes_the_whole_vmid(machine, release):
    m = machine(release)
    m.slot()
    m.access(0, 9)

    ask(m, "clear_flush_young", 0, 1)
    assert not m.vcpu.tlb.entries


@pytest.mark.parametrize("release", [p for p in EVERY if p.values[0] >= (4, 12)])
def test_clear_young_leaves_the_translation(machine, release):
    m = machine(release)
    m.slot()
    m.access(0)

    assert ask(m, "clear_young", 0, 1) is True
    m.access(0)
    assert m.field(0, "af") == 0
    assert m.exits() == 1
    assert m.lost == []


@pytest.mark.parametrize(
    ("release", "young"),
    [
        pytest.param((5, 5), False, id="v5.5 asks an empty range"),
        pytest.param((5, 6), True, id="v5.6"),
        pytest.param((5, 10), True, id="v5.10"),
        pytest.param((6, 12), True, id="v6.12"),
    ],
)
def test_test_young(machine, release, young):
    """cf2d23e0bac9 (v5.6)."""
    m = machine(release)
    m.slot()
    m.access(0)

    assert ask(m, "test_young", 0, 1) is young
    assert m.field(0, "af") == 1


@pytest.mark.parametrize(
    ("release", "minus", "young"),
    [
        pytest.param((4, 4), (), True, id="v4.4 page by page"),
        pytest.param((5, 4), (), False, id="v5.4 first leaf"),
        pytest.param((6, 4), (), False, id="v6.4 first leaf"),
        pytest.param((6, 5), (), True, id="v6.5 every leaf"),
        pytest.param((6, 5), ("ranged-aging",), False, id="without df6556adf27b"),
    ],
)
def test_range_whose_first_leaf_is_old(machine, release, minus, young):
    """df6556adf27b (v6.5): a huge page of the host, pages in stage 2."""
    m = machine(release, minus=minus, pages=512, huge=True)
    m.slot(gfn=513)
    m.access(520)

    assert ask(m, "clear_flush_young", 0, 512) is young
    assert m.field(520, "af") == (not young)
    assert m.lost == []


@pytest.mark.parametrize(
    ("release", "lost"),
    [
        pytest.param((4, 11), [], id="v4.11"),
        pytest.param((5, 4), ["warn"], id="v5.4"),
        pytest.param((6, 1), ["warn"], id="v6.1"),
        pytest.param((6, 5), [], id="v6.5"),
    ],
)
def test_range_that_is_no_block(machine, release, lost):
    m = machine(release)
    m.slot()
    m.access(0)

    ask(m, "clear_flush_young", 0, 3)
    assert m.lost == lost


@pytest.mark.parametrize("release", EVERY)
def test_block_is_aged_as_a_whole(machine, release):
    m = machine(release, pages=512, huge=True)
    m.slot(gfn=512)
    m.access(700)

    assert ask(m, "clear_flush_young", 0, 512) is True
    assert (m.level(512), m.field(512, "af")) == (2, 0)
    m.access(512)
    assert m.field(512, "af") == 1
    assert m.lost == []


@pytest.mark.parametrize(
    ("release", "lost"),
    [
        pytest.param((4, 12), ["table-memory"], id="v4.12 walks what is gone"),
        pytest.param((4, 13), [], id="v4.13"),
        pytest.param((5, 10), [], id="v5.10"),
        pytest.param((6, 12), [], id="v6.12"),
    ],
)
def test_aging_after_release(machine, release, lost):
    """The bug of 2017, fact sheet 6 row 1."""
    m = machine(release)
    slot = m.slot()
    m.access(0)
    m.do(m.k.flush_shadow_all(m.vm))

    assert m.locked(m.k.age_gfn(m.vm, slot, 0, 1)) is False
    assert m.locked(m.k.test_age_gfn(m.vm, slot, 0, 1)) is False
    assert m.lost == lost


@pytest.mark.parametrize(
    ("release", "mode"),
    [
        pytest.param((4, 4), "write", id="v4.4"),
        pytest.param((6, 2), "write", id="v6.2"),
        pytest.param((6, 3), "read", id="v6.3"),
    ],
)
def test_lock_of_an_access_fault(machine, release, mode):
    m = machine(release)
    slot = m.slot()
    m.access(0)
    m.locked(m.k.age_gfn(m.vm, slot, 0, 1))
    m.vcpu.tlb.drop_all()
    steps = []
    m.world.observer = lambda task, step: steps.append(step.op.name)

    m.access(0)
    name = "lock mmu_lock" if mode == "write" else "read-lock mmu_lock"
    assert name in steps
    assert m.named("tlb_invalidate") == []
    assert m.host.pages[m.pfn(0)].accessed
    assert m.lost == []
