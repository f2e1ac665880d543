"""Guests that walk the host's own tables: what they hear of, and how they fault."""

from itertools import pairwise

import pytest

from kvmarch.kernel.boot import destroy_vm
from kvmarch.kernel.gup import fixup_user_fault
from kvmarch.kernel.mmap import fork, madvise_dontneed, mprotect, touch_pages
from kvmarch.kernel.mremap import mremap
from kvmarch.kernel.reclaim import age, collapse, migrate, reclaim
from kvmarch.machine.host import DIRTY, PRESENT, WRITE, YOUNG
from kvmarch.machine.steps import Op
from kvmarch.testing.bench import HVA


@pytest.fixture
def heard(bench):
    """Return what was told of host entries: page, pages, old and new."""
    one = bench((6, 12))
    one.slot()
    one.heard = []
    one.mm.walkers.append(lambda *what: one.heard.append(what))
    return one


def test_without_a_notifier_nothing_is_registered_and_the_guest_hears(bench):
    told = []

    def hear(vm, vpn, pages, old, new):
        told.append((vm.name, vpn, new))

    one = bench(
        (6, 12), replaced={"mmu_notifier": False, "host_entry_changed": Op(hear)}
    )
    one.slot()
    one.access(1, "write")
    told.clear()
    one.do(madvise_dontneed(one.mm, one.at(1), one.at(2)))

    assert one.mm.subscriptions is None
    assert told == [("vm", one.vpn(1), 0)]
    assert one.named("kvm_unmap_hva_range") == []
    one.do(destroy_vm(one.vm, one.machine.subscriptions["vm"]))


def test_a_process_with_a_vm_may_have_no_huge_pages(bench):
    one = bench((6, 12), pages=512, replaced={"transparent_hugepage": False})

    assert one.mm.pmd_order == 0
    assert not one.do(collapse(one.mm, HVA))
    assert one.mm.pmds == {}


HOST = {
    "dontneed": lambda one: madvise_dontneed(one.mm, one.at(1), one.at(2)),
    "mprotect": lambda one: mprotect(one.mm, one.at(1), one.at(2), write=False),
    "reclaim": lambda one: reclaim(one.mm, one.at(1)),
    "migrate": lambda one: migrate(one.mm, one.at(1)),
    "age": lambda one: age(one.mm, one.at(1), one.at(2), "clear_young"),
    "fork": lambda one: fork(one.mm),
}


@pytest.mark.parametrize("how", HOST)
def test_every_change_of_an_entry_is_told(heard, how):
    vpn = heard.vpn(1)
    before = heard.mm.pte(vpn)

    heard.do(HOST[how](heard))

    mine = [(old, new) for page, _pages, old, new in heard.heard if page == vpn]
    assert mine[0][0] == before
    assert mine[-1][1] == heard.mm.pte(vpn)
    assert all(old == new for (_, old), (new, _) in pairwise(mine))


def test_a_move_is_told_at_both_places(heard):
    there = HVA + (1 << 30)

    heard.do(mremap(heard.mm, heard.at(1), heard.at(2), there))

    pages = [page for page, _pages, _old, _new in heard.heard]
    assert pages == [heard.vpn(1), there >> 12]


def test_a_huge_entry_is_told_with_its_pages(bench):
    one = bench((6, 12), pages=512)
    told = []
    one.mm.walkers.append(lambda *what: told.append(what))

    assert one.do(collapse(one.mm, HVA))

    assert [what[1] for what in told] == [1] * 512 + [512]
    assert told[-1][3] == one.mm.pmds[HVA >> 12]


def test_a_fault_makes_the_entry_young_and_dirty(heard):
    vpn = heard.vpn(1)
    heard.do(age(heard.mm, heard.at(1), heard.at(2), "clear_young"))
    heard.mm.set_pte(vpn, heard.mm.pte(vpn) & ~DIRTY)

    assert heard.do(fixup_user_fault(heard.vm, heard.at(1), False))
    assert heard.mm.pte(vpn) & (PRESENT | YOUNG | DIRTY) == PRESENT | YOUNG
    assert heard.do(fixup_user_fault(heard.vm, heard.at(1), True))
    assert heard.mm.pte(vpn) & (YOUNG | DIRTY | WRITE) == YOUNG | DIRTY | WRITE


def test_a_fault_that_the_host_forbids_fails(heard):
    heard.do(mprotect(heard.mm, heard.at(1), heard.at(2), write=False))

    assert not heard.do(fixup_user_fault(heard.vm, heard.at(1), True))
    assert heard.do(fixup_user_fault(heard.vm, heard.at(1), False))


def test_a_write_copies_what_is_shared(heard):
    heard.do(touch_pages(heard.mm, heard.at(1), (7,)))
    heard.do(fork(heard.mm))
    old = heard.pfn(1)

    assert heard.do(fixup_user_fault(heard.vm, heard.at(1), True))
    assert heard.pfn(1) != old
