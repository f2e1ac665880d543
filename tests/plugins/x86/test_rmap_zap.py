"""Zapping tables of the direct MMU: obsolete ones in batches, all, roots, recycling."""

import pytest
from kvmarch_x86.rmap_map import RMAP_RECYCLE_THRESHOLD
from kvmarch_x86.rmap_mmu import (
    rmap_alloc_root,
    rmap_free_root,
    rmap_map,
    rmap_zap_all,
    rmap_zap_obsolete_pages,
)
from kvmarch_x86.rmap_pages import kvm_mmu_get_page, prepare_zap_page
from kvmarch_x86.rmap_zap import BATCH_ZAP_PAGES
from kvmarch_x86.tdp_tables import lowest

from kvmarch import op
from kvmarch.kernel.boot import destroy_vm
from kvmarch.kernel.memory_region import Region, set_memory_region
from kvmarch.kernel.vcpu import guest_access

COMPARED = [(3, 16), (4, 4), (4, 12), (5, 4), (5, 10), (5, 13), (6, 1), (6, 12), (7, 2)]


@op(name="next generation")
def _next_generation(vm):
    vm.arch.mmu_valid_gen += 1


async def zap(m, how, *, obsolete=False):
    async with m.vm.mmu_lock.write():
        if obsolete:
            await _next_generation(m.vm)
        await how(m.vm)


def spread(m, count):
    """Map one page in each of some 2 MiB pieces, from gfn 0x100000 on."""
    slot = m.slot(gfn=0x100000)
    m.access(0x100000)
    root = m.vcpu.arch.root_pa
    for piece in range(count):
        gfn = 0x100000 + 512 * piece
        m.locked(
            rmap_map, m.vm, slot, gfn, m.pfn(1), 1, root_pa=root, host_writable=True
        )
    return slot


def lock_drops(m, task):
    """Run a task to its end; return how often it gave mmu_lock away."""
    names = []
    m.world.observer = lambda _task, step: names.append(step.op.name)
    m.finish(task)
    m.world.observer = None
    return names.count("unlock mmu_lock")


def test_obsolete_tables_go_in_batches(rmap):
    m = rmap((5, 10))
    spread(m, 25)
    tables = len(m.vm.arch.active_mmu_pages)
    task = m.task("zap", zap(m, rmap_zap_obsolete_pages, obsolete=True))
    drops = lock_drops(m, task)

    assert tables == 25 + 3
    assert BATCH_ZAP_PAGES == 10
    assert drops == 3
    assert m.vm.arch.active_mmu_pages == []
    # The root is in use and stays; nothing is in it.
    assert list(m.vm.tables.live) == [m.vcpu.arch.root_pa]
    assert m.vm.arch.mmu_page_hash == {}
    assert m.vm.arch.parent_ptes == {}


def test_new_tables_stop_the_walk(rmap):
    m = rmap((5, 10))
    spread(m, 25)
    task = m.task("zap", zap(m, rmap_zap_obsolete_pages, obsolete=True))
    m.reaches(task, "lock mmu_lock")
    assert m.reaches(task, "zap obsolete pages")
    m.reaches(task, "unlock mmu_lock")
    # The lock is about to be dropped: a fault comes in between.
    m.reaches(task, "lock mmu_lock")
    new = m.locked(kvm_mmu_get_page, m.vm, 0, 1, 0x100000).pa
    m.finish(task)

    assert m.vm.arch.active_mmu_pages == [new]
    assert m.vm.arch.mmu_page_hash == {(0, 1, 0x100000): [new]}
    assert not m.vm.tables.at(new).note.invalid


def test_an_obsolete_root_dies_with_its_last_vcpu(rmap):
    m = rmap((5, 10), vcpus=2)
    slot = m.slot()
    m.access(3, vcpu=0)
    m.access(3, vcpu=1)
    old = m.vcpu.arch.root_pa
    refs = m.vm.tables.at(old).refs
    m.slot(slot=5, gfn=0x1000, pages=4)
    m.slot(slot=5, gfn=0x1000, pages=0)
    after = m.vm.tables.at(old).note.invalid
    m.access(3, vcpu=0)
    half = old in m.vm.tables.live, m.vcpu.arch.root_pa != old
    m.access(3, vcpu=1)

    assert refs == 2
    assert after
    assert half == (True, True)
    assert m.vm.vcpus[1].arch.root_pa == m.vcpu.arch.root_pa
    assert m.vm.tables.at(m.vcpu.arch.root_pa).refs == 2
    assert [e["gfn"] for e in m.named("kvm_mmu_prepare_zap_page")].count(0) == 5
    assert slot == m.vm.memslots[0].by_id(0)
    assert not m.world.violations


@pytest.mark.parametrize("release", COMPARED)
def test_deleting_a_slot_drops_everything(rmap, release):
    m = rmap(release)
    m.slot(pages=8)
    m.slot(slot=1, gfn=0x100, pages=8, page=8)
    m.access(3, "write")
    m.access(0x103, "write")
    m.slot(slot=1, gfn=0x100, pages=0)

    assert m.mapped(3, 0x103) in ([], [3])
    assert m.access(3, "write") == "done"
    assert m.access(0x103) == "mmio"
    assert not m.world.violations


@pytest.mark.parametrize("release", COMPARED)
@pytest.mark.parametrize(
    "options", [{}, {"paging": "npt"}, {"ad": 0}], ids=["ept", "npt", "no A/D"]
)
def test_teardown_leaves_no_table(rmap, release, options):
    m = rmap(release, vcpus=2, **options)
    m.slot()
    m.access(3, "write", vcpu=0)
    m.access(9, "write", vcpu=1)
    m.do(destroy_vm(m.vm, m.machine.subscriptions["vm"]))

    assert m.vm.tables.live == {}
    assert m.vm.arch.mmu_page_hash == {}
    assert m.vm.arch.parent_ptes == {}
    assert not m.world.violations


def test_zap_all_tells_vcpus_to_leave_their_root(rmap):
    m = rmap((5, 10))
    m.slot()
    m.access(3, "write")
    root = m.vcpu.arch.root_pa
    table = m.vm.tables.at(root)
    m.do(zap(m, rmap_zap_all))
    invalid = table.note.invalid
    asked = set(m.vcpu.requests)
    m.access(3, "write")

    assert invalid
    assert m.k.x86_reload_request in asked
    # The page of the old root may be that of the new one.
    assert not m.vm.tables.at(m.vcpu.arch.root_pa).note.invalid
    assert not m.world.violations


def test_zap_all_begins_again_when_faults_go_on(rmap):
    m = rmap((5, 10))
    spread(m, 5)
    task = m.task("zap", zap(m, rmap_zap_all))
    rounds = 0
    while rounds < 30 and m.reaches(task, "unlock mmu_lock"):
        m.reaches(task, "lock mmu_lock")
        if task.done:
            break
        # Livelock (D10): each table that goes is followed by a new one.
        m.locked(kvm_mmu_get_page, m.vm, 0, 1, 0x200000 + 512 * rounds)
        rounds += 1

    assert rounds == 30
    assert m.vm.arch.active_mmu_pages
    m.finish(task)
    assert not m.vm.arch.active_mmu_pages


def test_zap_unlinks_from_both_sides(rmap):
    m = rmap((5, 10))
    m.slot()
    m.access(3, "write")
    root = m.vcpu.arch.root_pa
    level2 = next(pa for pa, t in m.vm.tables.live.items() if t.level == 2)
    leafs = m.k.leaf_table.fn(m.vm, 3, 1)[0]
    zapped = m.locked(prepare_zap_page, m.vm, m.vm.tables.at(level2))

    assert zapped.table_pa == level2
    assert zapped.leafs == 0
    assert lowest(m.vm, root, 3)[0].level == 3
    # The table below keeps its leafs: it is found again by the hash.
    assert m.vm.tables.at(leafs).get(3)
    assert leafs not in m.vm.arch.parent_ptes
    m.vm.tables.free(m.vm.tables.at(level2))
    m.access(4, "write")
    assert m.k.leaf_table.fn(m.vm, 3, 1)[0] == leafs
    assert 3 in m.mapped()


def test_roots_are_shared_and_counted(rmap):
    m = rmap((5, 10))
    one = m.locked(rmap_alloc_root, m.vm, 0)
    other = m.locked(rmap_alloc_root, m.vm, 0)
    smm = m.locked(rmap_alloc_root, m.vm, 1)
    m.locked(rmap_free_root, m.vm, one)

    assert one == other
    assert smm != one
    assert m.vm.tables.at(one).refs == 1
    # A valid root stays, loaded or not.
    m.locked(rmap_free_root, m.vm, one)
    assert one in m.vm.tables.live
    assert not m.world.violations


def test_a_root_is_not_put_too_often(rmap):
    m = rmap((5, 10))
    root = m.locked(rmap_alloc_root, m.vm, 0)
    m.locked(rmap_free_root, m.vm, root)
    m.locked(rmap_free_root, m.vm, root)

    assert m.lost == ["warn"]


@pytest.mark.parametrize(
    ("others", "kept"),
    [
        pytest.param(RMAP_RECYCLE_THRESHOLD, True, id="1000 others stay"),
        pytest.param(RMAP_RECYCLE_THRESHOLD + 1, False, id="1001 others: all go"),
    ],
)
def test_a_long_reverse_map_is_recycled(rmap, others, kept):
    m = rmap((5, 10))
    slot = m.slot()
    m.access(3, "write")
    arch = m.vm.arch
    entry = m.entry(3)
    first = m.k.leaf_table.fn(m.vm, 3, 1)[0]
    # Tables of the same place, as shadowed guests could have.
    for _each in range(others - 1):
        table = m.vm.tables.alloc(512, 1, 0, align=4096)
        table.note = m.vm.tables.at(first).note
        table.set(3, entry)
        arch.mmu_page_hash[0, 1, 0].append(table.pa)
    last = m.vm.tables.alloc(512, 1, 0, align=4096)
    last.note = m.vm.tables.at(first).note
    arch.mmu_page_hash[0, 1, 0].append(last.pa)
    parent = arch.parent_ptes[first][0]
    m.vm.tables.at(parent[0]).set(parent[1], last.pa | 0x107)
    m.locked(
        rmap_map,
        m.vm,
        slot,
        3,
        m.pfn(3),
        1,
        root_pa=m.vcpu.arch.root_pa,
        host_writable=True,
    )

    left = [pa for pa in arch.mmu_page_hash[0, 1, 0] if m.vm.tables.at(pa).get(3)]
    assert len(left) == (others + 1 if kept else 0)
    assert bool(m.named("flush_owed")) is not kept


@pytest.mark.parametrize(
    ("release", "mapped"),
    [
        pytest.param((5, 10), True, id="D3: the root is not looked at"),
        pytest.param((6, 1), False, id="a955cad84cda"),
    ],
)
def test_a_fault_into_an_obsolete_root(rmap, release, mapped):
    m = rmap(release)
    m.slot(pages=12)
    m.slot(slot=1, gfn=0x100, pages=4, page=12)
    m.access(3)
    old = m.vcpu.arch.root_pa
    region = Region(1, 0, 0x100 << 12, 0, 0)
    deletion = m.task("user", set_memory_region(m.vm, region))
    # The slot is INVALID, and whoever saw it before is gone.
    assert m.reaches(deletion, "lock mmu_lock")
    # A fault on the other slot looks for its page meanwhile.
    fault = m.task("vcpu0", guest_access(m.vcpu, 9, "write"))
    assert m.reaches(fault, "lock mmu_lock")
    m.reaches(deletion, "")
    m.reaches(fault, "unlock mmu_lock")
    entry = lowest(m.vm, old, 9)[2]
    # Where the root is obsolete the next fault waits until the update is over.
    m.reaches(fault, "refault while others are at it")
    m.finish(deletion)
    done = m.finish(fault)

    assert (entry != m.layout.nonpresent) == mapped
    assert done == "done"
    assert m.mapped(9) == [9]
