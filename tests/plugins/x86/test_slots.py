"""Memslots: deletion, moves, generations, roots; teardown."""

import pytest
from kvmarch_x86.slots import prepare_memory_region

from kvmarch.kernel.boot import destroy_vm
from kvmarch.kernel.memory_region import Region, set_memory_region
from kvmarch.kernel.memslots import Memslot, Memslots
from kvmarch.kernel.mmap import exit_mmap, madvise_dontneed
from kvmarch.kernel.vcpu import guest_access

BOTH = [
    *((release, "rmap") for release in [(3, 16), (4, 4), (5, 0), (5, 1), (5, 3)]),
    *((release, "rmap") for release in [(5, 4), (5, 10), (6, 1), (7, 2)]),
    *((release, "tdp") for release in [(5, 10), (5, 12), (5, 13), (5, 17)]),
    *((release, "tdp") for release in [(6, 1), (6, 4), (6, 12), (7, 2)]),
]


def delete(m, slot):
    assert m.do(set_memory_region(m.vm, Region(slot, 0, 0, 0, 0))) == 0


def two_slots(machine, release, mmu, **options):
    """Return a machine with a page of each of two memslots mapped."""
    m = machine(release, mmu=mmu, **options)
    m.slot(0, pages=8)
    m.slot(1, gfn=0x1000, pages=8, page=8)
    m.access(1, "write")
    m.access(0x1001, "write")
    return m


@pytest.mark.parametrize(("release", "mmu"), BOTH)
def test_nothing_of_a_deleted_slot_stays(machine, release, mmu):
    m = two_slots(machine, release, mmu)
    delete(m, 1)

    assert m.mapped(0x1001) == []
    assert m.access(0x1001) == "mmio"
    assert m.access(1) == "done"
    assert not m.world.violations


@pytest.mark.parametrize(
    ("release", "mmu", "options", "other"),
    [
        pytest.param((5, 0), "rmap", {}, [], id="5.0: everything"),
        pytest.param((5, 1), "rmap", {}, [1], id="5.1: the slot alone"),
        pytest.param((5, 2), "rmap", {}, [1], id="5.2: the slot alone"),
        pytest.param((5, 3), "rmap", {}, [], id="5.3: everything, yielding"),
        pytest.param((5, 4), "rmap", {}, [], id="5.4: everything, fast"),
        pytest.param((5, 10), "tdp", {}, [], id="5.10: everything"),
        pytest.param((6, 1), "tdp", {}, [], id="6.1: everything"),
        pytest.param((6, 12), "tdp", {}, [], id="6.12: everything"),
        pytest.param((6, 12), "tdp", {"slot_zap_all": 0}, [1], id="6.12, no quirk"),
        pytest.param((7, 2), "rmap", {"slot_zap_all": 0}, [1], id="7.2, no quirk"),
    ],
)
def test_what_a_deletion_zaps_of_other_slots(machine, release, mmu, options, other):
    m = two_slots(machine, release, mmu, **options)
    delete(m, 1)

    assert m.mapped(1) == other
    assert not m.world.violations


@pytest.mark.parametrize(
    ("release", "request_"),
    [
        pytest.param((5, 17), "mmu_reload", id="5.17"),
        pytest.param((5, 18), "mmu_free_obsolete_roots", id="5.18"),
    ],
)
def test_vcpus_are_told_to_leave_their_root(machine, release, request_):
    m = two_slots(machine, release, "tdp")
    before = m.vcpu.arch.root_pa
    delete(m, 1)
    told = request_ in m.vcpu.requests
    m.access(1)

    assert told
    assert m.vcpu.arch.root_pa == m.vm.arch.root_of[0]
    assert before not in m.vm.arch.invalid_roots
    assert not m.world.violations


@pytest.mark.parametrize(
    ("release", "kept"),
    [
        pytest.param((5, 10), True, id="5.10: emptied, still valid"),
        pytest.param((5, 12), True, id="5.12: likewise"),
        pytest.param((5, 13), False, id="5.13: invalid"),
        pytest.param((7, 2), False, id="7.2: invalid"),
    ],
)
def test_what_becomes_of_a_root(machine, release, kept):
    m = two_slots(machine, release, "tdp")
    root = m.vm.tables.at(m.vcpu.arch.root_pa)
    delete(m, 1)

    assert (m.vm.arch.root_of[0] == root.pa) == kept
    assert root.note.invalid != kept
    assert list(root.used(0, 512)) == []
    m.access(1)
    assert len(m.vm.arch.roots) == 1
    assert not m.world.violations


@pytest.mark.parametrize(
    ("release", "frozen"),
    [
        pytest.param((5, 13), 0x5A0, id="5.13"),
        pytest.param((6, 1), 0x5A0, id="6.1, recorded"),
        pytest.param((6, 12), 0x80000000000005A0, id="6.12"),
        pytest.param((7, 2), 0x80000000000001A0, id="7.2"),
    ],
)
def test_a_removed_table_is_frozen_in_every_entry(machine, release, frozen):
    m = two_slots(machine, release, "tdp")
    pa, _index = m.k.leaf_table.fn(m.vm, 1, 1)
    delete(m, 1)
    table = m.vm.tables.freed[pa]

    assert [entry for _index, entry in table.used(0, 512)] == [frozen] * 512
    assert not m.world.violations


@pytest.mark.parametrize(("release", "mmu"), BOTH)
def test_a_slot_that_moves_takes_nothing_with_it(machine, release, mmu):
    m = two_slots(machine, release, mmu)
    m.slot(1, gfn=0x2000, pages=8, page=8)

    assert m.mapped(0x1001, 0x2001) == []
    assert [m.access(0x1001), m.access(0x2001)] == ["mmio", "done"]
    assert not m.world.violations


@pytest.mark.parametrize(("release", "mmu"), BOTH)
def test_a_vcpu_in_the_guest_gets_no_page_of_a_deleted_slot(machine, release, mmu):
    m = two_slots(machine, release, mmu)
    # The vCPU stays in the guest, with the page in its TLB.
    assert m.vcpu.mode == "in_guest"
    delete(m, 1)

    assert m.vcpu.mode == "outside"
    assert m.access(0x1001) == "mmio"
    assert not m.world.violations


# -- generations -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "mmu", "before"),
    [
        # The generation that the next update makes wrap around.
        pytest.param((3, 17), "rmap", (1 << 20) - 2, id="3.17: 20 bits"),
        pytest.param((5, 1), "rmap", (1 << 19) - 2, id="5.1: 19 bits"),
        pytest.param((5, 10), "rmap", (1 << 18) - 2, id="5.10: 18 bits"),
        pytest.param((5, 10), "tdp", (1 << 18) - 2, id="5.10 tdp"),
        pytest.param((6, 1), "tdp", (1 << 19) - 2, id="6.1: 19 bits"),
        pytest.param((7, 2), "tdp", (1 << 18) - 2, id="7.2: 18 bits"),
    ],
)
def test_a_generation_that_wraps_zaps_everything(machine, release, mmu, before):
    m = machine(release, mmu=mmu)
    m.slot(0, pages=8)
    m.access(1, "write")
    memslots = m.vm.memslots[0]
    m.vm.memslots[0] = Memslots(memslots.slots, before - 2)
    m.slot(2, gfn=0x3000, pages=1)
    early = m.mapped(1)
    m.slot(3, gfn=0x4000, pages=1)

    assert early == [1]
    assert m.mapped(1) == []
    assert m.access(1) == "done"
    assert not m.world.violations


@pytest.mark.parametrize(
    ("gfn", "errno"),
    [pytest.param(0, 0, id="low"), pytest.param(1 << 36, 22, id="high")],
)
def test_a_memslot_beyond_the_tables_is_refused(machine, gfn, errno):
    m = machine((6, 1))
    new = Memslot(0, 1, gfn, 8, 0)

    assert prepare_memory_region(m.vm, None, new, "create") == errno
    assert prepare_memory_region(m.vm, new, None, "delete") == 0


# -- history ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "minus", "lost"),
    [
        pytest.param((5, 17), (), ["freed-page"], id="5.17: valid roots only (D4)"),
        pytest.param((5, 18), (), [], id="5.18: all roots"),
        pytest.param(
            (6, 1), ("x86-unmap-all-roots",), ["freed-page"], id="6.1 without the fix"
        ),
    ],
)
def test_unmapping_from_a_root_that_is_being_zapped(machine, release, minus, lost):
    m = two_slots(machine, release, "tdp", minus=minus)
    update = m.task("vmm", set_memory_region(m.vm, Region(1, 0, 0, 0, 0)))
    # The root is invalid; the zapper has not begun yet.
    assert m.reaches(update, "next invalid root")
    m.do(madvise_dontneed(m.mm, m.hva(1), m.hva(2)), "host")
    m.finish(update)

    assert m.lost == lost


@pytest.mark.parametrize(
    ("release", "lost"),
    [
        pytest.param(
            (3, 16), ["stale-mmio"], id="3.16: one generation per update (D1)"
        ),
        pytest.param((3, 17), [], id="3.17: two"),
    ],
)
def test_an_mmio_entry_that_is_made_while_a_slot_appears(machine, release, lost):
    m = machine(release)
    m.slot(0, pages=8)
    vcpu = m.task("vcpu0", guest_access(m.vcpu, 0x1001, "read"))
    # The fault has found no memslot; the update is published and waits for it.
    assert m.reaches(vcpu, "lock mmu_lock")
    add = set_memory_region(m.vm, Region(1, 0, 0x1000 << 12, 8 << 12, m.hva(8)))
    update = m.task("vmm", add)
    m.reaches(update, "wait for readers of kvm->srcu")
    m.finish(vcpu)
    m.finish(update)
    m.access(0x1001)

    assert m.lost == lost


# -- teardown --------------------------------------------------------------------------


@pytest.mark.parametrize(("release", "mmu"), BOTH)
@pytest.mark.parametrize("first", ["mm", "vm"])
def test_no_table_is_left_at_the_end(machine, release, mmu, first):
    m = two_slots(machine, release, mmu)
    m.access(0x5000)
    subscription = m.machine.subscriptions["vm"]
    if first == "mm":
        m.do(exit_mmap(m.mm))
        m.do(destroy_vm(m.vm, subscription))
    else:
        m.do(destroy_vm(m.vm, subscription))
        m.do(exit_mmap(m.mm))

    assert m.vm.tables.live == m.vm.tables.retired == {}
    assert not m.world.violations


@pytest.mark.parametrize(
    ("release", "flushes"),
    [
        pytest.param((5, 17), True, id="5.17: flushed"),
        pytest.param((5, 18), False, id="5.18: nothing runs any more"),
    ],
)
def test_zapping_everything_at_the_end(machine, release, flushes):
    m = two_slots(machine, release, "tdp")
    before = len(m.named("flush"))

    async def release_notifier():
        async with m.vm.srcu.read():
            await m.k.flush_shadow_all(m.vm)
            await m.k.flush_shadow_all(m.vm)

    m.do(release_notifier())

    assert m.mapped(1, 0x1001) == []
    assert (len(m.named("flush")) > before) == flushes
    assert not m.world.violations
