"""Operations by release: the sheet's test vectors, on machines of several kernels."""

import pytest
from kvmarch import LOG_DIRTY_PAGES, READONLY

from kvmarch_riscv.gstage import SplitCache, set_pte
from kvmarch_riscv.pte import leaf_pte, mkold, wrprotect

# Fact sheet riscv, 6: the entry of a page, its pfn put in place of the machine's.
PFN = 0x91000
MAPPED, PROTECTED, OLD = 0x2440_00DF, 0x2440_00DB, 0x2440_009F

pytestmark = pytest.mark.kvmarch(arch="riscv")
riscv = pytest.mark.kvmarch(arch="riscv", kernel="v5.16,v5.19,v6.9,v6.17,v7.1,v7.2")
with_change_pte = pytest.mark.kvmarch(arch="riscv", kernel="v5.16,v6.9")
newest = pytest.mark.kvmarch(arch="riscv", kernel="v7.2")


def leaf(kvm, gfn, pfn=PFN):
    """Return the entry of a gfn as it would be for the sheet's page."""
    entry, level = kvm.k.entry.fn(kvm.vm, gfn)
    assert level == 0
    options = kvm.vm.options
    if kvm.k.entry_pfn.fn(kvm.k, options, entry, level) is None:
        return entry
    return kvm.k.entry_repoint.fn(kvm.k, options, entry, level, pfn)


def requests(kvm):
    """Return what was asked of the vCPUs so far."""
    return [e["request"] for e in kvm.named("kvm_make_all_cpus_request")]


def unmap(kvm, gfn, end, *, may_block=False):
    """Call the notifier's hook as the generic code does."""
    slot = kvm.vm.memslots[0].find(gfn)

    async def locked():
        async with kvm.vm.mmu_lock.write():
            return await kvm.k.unmap_gfn_range(kvm.vm, slot, gfn, end, may_block)

    return kvm.do(locked())


def hook(kvm, name, *args):
    slot = kvm.vm.memslots[0].find(args[0])

    async def locked():
        async with kvm.vm.mmu_lock.write():
            return await getattr(kvm.k, name)(kvm.vm, slot, *args)

    return kvm.do(locked())


@riscv
def test_the_sheets_vectors(kvm):
    kvm.access(1)
    assert leaf(kvm, 1) == MAPPED

    kvm.slot(flags=LOG_DIRTY_PAGES)
    assert leaf(kvm, 1) == PROTECTED
    kvm.access(1, "write")
    assert leaf(kvm, 1) == MAPPED
    assert kvm.vm.dirty_bitmaps[kvm.vm.memslots[0].find(1).bitmap][0] == 2

    assert hook(kvm, "age_gfn", 1, 2) is True
    assert leaf(kvm, 1) == OLD
    assert hook(kvm, "age_gfn", 1, 2) is False
    assert leaf(kvm, 1) == OLD

    assert unmap(kvm, 1, 2) is None
    assert leaf(kvm, 1) == 0
    assert kvm.k.entry.fn(kvm.vm, 1)[1] == 0, "the table stays"
    assert kvm.lost == []


@with_change_pte
def test_change_pte_maps_what_was_unmapped(kvm):
    kvm.access(1)
    unmap(kvm, 1, 2)
    pte = kvm.mm.pte(kvm.vpn(2))

    assert hook(kvm, "set_spte_gfn", 1, pte) is None
    assert kvm.entry(1) == wrprotect(leaf_pte(kvm.pfn(2), writable=False))
    assert leaf(kvm, 1, 0x92000) == 0x2480_00DB


@with_change_pte
def test_change_pte_without_a_table_flushes_all_for_nothing(kvm):
    before = kvm.k.entry.fn(kvm.vm, 1)

    async def locked():
        async with kvm.vm.mmu_lock.write():
            owed = await kvm.k.set_spte_gfn(
                kvm.vm, kvm.vm.memslots[0].find(1), 1, kvm.mm.pte(kvm.vpn(2))
            )
            kvm.vm.ledger.forgive("looked at")
            return owed

    owed = kvm.do(locked())
    assert owed is not None
    assert kvm.k.entry.fn(kvm.vm, 1) == before


@riscv
def test_after_the_release_every_hook_returns(kvm):
    kvm.access(1)
    kvm.do(kvm.k.flush_shadow_all(kvm.vm))
    assert kvm.vm.arch.pgd is None

    assert unmap(kvm, 1, 2, may_block=True) is None
    assert hook(kvm, "age_gfn", 1, 2) is False
    assert hook(kvm, "test_age_gfn", 1, 2) is False
    kvm.do(kvm.k.flush_shadow_all(kvm.vm))
    assert kvm.lost == []


@riscv
def test_a_slot_may_not_reach_the_last_page(kvm):
    limit = kvm.vm.arch.gfns
    last = kvm.slot(slot=1, gfn=limit - 16)
    before = kvm.slot(slot=1, gfn=limit - 17)

    assert (last, before) == (14, 0)


@pytest.mark.kvmarch(arch="riscv", kernel="v7.2", with_="riscv-gpa-limit-inclusive")
def test_a_slot_may_reach_the_last_page_since_then(kvm):
    assert kvm.slot(slot=1, gfn=kvm.vm.arch.gfns - 16) == 0
    assert kvm.slot(slot=1, gfn=kvm.vm.arch.gfns - 15) == 14


@riscv
def test_memory_that_is_not_writable_needs_a_slot_that_is_not(kvm):
    kvm.mm.change_vmas(kvm.at(0), kvm.at(4), write=False)

    assert kvm.slot(slot=1, gfn=64) == 1
    assert kvm.slot(slot=1, gfn=64, flags=READONLY) == 0


@pytest.mark.kvmarch(arch="riscv", kernel="v6.1", mode="sv39x4", adue=0)
def test_a_cpu_that_does_not_set_a_faults_and_gets_a_new_leaf(kvm):
    kvm.access(1)
    hook(kvm, "age_gfn", 1, 2)
    assert kvm.entry(1) == mkold(leaf_pte(kvm.pfn(1), writable=True))

    kvm.vcpu.tlb.drop_all()
    assert kvm.access(1) == "done"
    assert kvm.vcpu.exits["access"] == 1
    assert kvm.entry(1) == leaf_pte(kvm.pfn(1), writable=True)


@pytest.mark.kvmarch(arch="riscv", kernel="v6.1", mode="sv39x4", adue=1)
def test_a_cpu_that_sets_a_does_so_in_the_entry(kvm):
    kvm.access(1)
    hook(kvm, "age_gfn", 1, 2)

    kvm.vcpu.tlb.drop_all()
    assert kvm.access(1) == "done"
    assert kvm.vcpu.exits["access"] == 0
    assert kvm.entry(1) == leaf_pte(kvm.pfn(1), writable=True)


@newest
def test_a_page_of_a_device_without_u_faults(kvm):
    kvm.access(1)
    pa, index = kvm.k.leaf_table.fn(kvm.vm, 1, 0)
    user = kvm.vm.tables.at(pa)
    user.set(index, user.get(index) & ~(1 << 4))

    assert kvm.k.translate.fn(kvm.vcpu, 1, "read") == "permission"


@newest
@pytest.mark.parametrize("gfn", [1 << 40, 1 << 47])
def test_an_address_beyond_the_mode_faults(kvm, gfn):
    assert gfn < kvm.vm.arch.gfns or kvm.k.translate.fn(kvm.vcpu, gfn, "read")
    assert kvm.k.translate.fn(kvm.vcpu, gfn, "read") == "missing"


@pytest.mark.kvmarch(arch="riscv", kernel="v6.13,v7.2")
def test_a_fault_that_lost_a_race_still_marks_its_page(kvmarch_boot):
    kvm = kvmarch_boot()
    page = kvm.host.pages[kvm.pfn(1)]
    page.dirty = page.accessed = False
    fault = kvm.actor("vcpu0", kvm.k.page_fault(kvm.vcpu, 1, "read", "missing"))
    fault.to("lock mmu_lock")
    kvm.vm.mmu_invalidate_seq += 1
    assert fault.end() == "guest"

    assert kvm.k.entry.fn(kvm.vm, 1)[0] == 0
    assert (page.dirty, page.accessed) == (True, True)


@pytest.mark.kvmarch(arch="riscv", kernel="v7.2", with_="riscv-retry-releases-unused")
def test_a_fault_that_lost_a_race_leaves_its_page_alone_since_then(kvm):
    page = kvm.host.pages[kvm.pfn(1)]
    page.dirty = page.accessed = False
    fault = kvm.actor("vcpu0", kvm.k.page_fault(kvm.vcpu, 1, "read", "missing"))
    fault.to("lock mmu_lock")
    kvm.vm.mmu_invalidate_seq += 1
    assert fault.end() == "guest"

    assert (page.dirty, page.accessed) == (False, False)


@pytest.mark.kvmarch(arch="riscv", kernel="v7.2", svvptc=1)
def test_with_svvptc_a_new_leaf_needs_no_flush(kvm):
    kvm.access(1)

    assert "hfence" not in requests(kvm)


@riscv
def test_without_svvptc_a_new_leaf_is_flushed(kvm):
    kvm.access(1)

    names = {event.name for event in kvm.world.events}
    assert names & {"tlb_invalidate", "kvm_make_all_cpus_request"}


@pytest.mark.kvmarch(arch="riscv", kernel="v6.16,v6.17")
def test_an_entry_that_does_not_change_is_flushed_up_to_v6_16(kvmarch_case, kvm):
    kvm.access(1)
    before = len(requests(kvm))
    fault = kvm.k.page_fault(kvm.vcpu, 1, "read", "missing")
    assert kvm.do(fault, "vcpu0") == "guest"

    again = len(requests(kvm)) - before
    assert again == (1 if kvmarch_case.release < (6, 17) else 0)


@pytest.mark.kvmarch(arch="riscv", kernel="v7.1,v7.2")
def test_an_unmap_asks_once_since_v7_2(kvmarch_case, kvm):
    for gfn in range(4):
        kvm.access(gfn)
    kvm.vcpu.arch.hfence_queue = ()
    unmap(kvm, 0, 4)

    fences = [(f.gfn, f.pages) for f in kvm.vcpu.arch.hfence_queue]
    if kvmarch_case.release < (7, 2):
        assert fences == [(0, 1), (1, 1), (2, 1), (3, 1)]
    else:
        assert fences == [(0, 4)]
    assert kvm.lost == []


# -- huge leaves: H1 to H4 of the sheet --------------------------------------------


@pytest.fixture
def huge(kvmarch_bench):
    """A machine with a leaf of 2 MiB at 0x80200000, and the entry of its first page."""

    def make(release, flags=0):
        kvm = kvmarch_bench(release, pages=512, thp=True)
        assert kvm.slot(gfn=0x80200) == 0
        vm = kvm.vm
        vm.arch.split_page_cache = vm.arch.levels
        entry = leaf_pte(0x80200, writable=True)
        assert set_pte(vm, vm.arch.pgd, 0x80200, 1, entry, SplitCache(vm)) == 0
        assert kvm.slot(gfn=0x80200, flags=flags) == 0
        kvm.vm.ledger.forgive("nothing has run")
        return kvm

    return make


@pytest.mark.parametrize(("release", "warns"), [((7, 1), False), ((7, 2), True)])
def test_a_part_of_a_huge_leaf_is_not_unmapped(huge, release, warns):
    kvm = huge(release)
    unmap(kvm, 0x80205, 0x80206)

    assert kvm.k.entry.fn(kvm.vm, 0x80205) == (0x2008_00DF, 1)
    assert ("warn" in kvm.lost) is warns


@pytest.mark.parametrize("gfn", [0x80200, 0x80205])
def test_aging_any_page_of_a_huge_leaf_makes_it_old(huge, gfn):
    kvm = huge((7, 2))

    assert hook(kvm, "age_gfn", gfn, gfn + 1) is True
    assert kvm.k.entry.fn(kvm.vm, 0x80200) == (0x2008_009F, 1)


@pytest.mark.parametrize(
    ("release", "how"), [((7, 0), "error"), ((7, 1), "done"), ((7, 2), "done")]
)
def test_a_logged_write_to_a_huge_leaf_splits_it_since_v7_1(huge, release, how):
    kvm = huge(release, LOG_DIRTY_PAGES)
    assert kvm.k.entry.fn(kvm.vm, 0x80205) == (0x2008_00DB, 1)

    assert kvm.access(0x80205, "write") == how
    if how == "error":
        assert kvm.k.entry.fn(kvm.vm, 0x80205) == (0x2008_00DB, 1)
        return
    others = [n for n in range(512) if n != 5]
    assert [kvm.k.entry.fn(kvm.vm, 0x80200 + n) for n in others] == [
        (0x2008_00DB + n * 0x400, 0) for n in others
    ]
    assert leaf(kvm, 0x80205, 0x80205) == 0x2008_14DF


def test_a_huge_leaf_takes_the_place_of_an_empty_table(kvmarch_bench):
    kvm = kvmarch_bench((7, 2), pages=512, thp=True)
    kvm.slot(flags=LOG_DIRTY_PAGES)
    kvm.access(5)
    tables = set(kvm.vm.tables.live)
    kvm.slot()
    unmap(kvm, 0, 512)
    assert kvm.k.entry.fn(kvm.vm, 5) == (0, 0)

    kvm.access(5)
    assert kvm.k.entry.fn(kvm.vm, 5) == (leaf_pte(kvm.pfn(0), writable=True), 1)
    assert set(kvm.vm.tables.live) == tables, "the old one is reached by nobody"


# -- memory for tables -------------------------------------------------------------


@riscv
def test_without_memory_for_tables_kvm_run_fails(kvm):
    kvm.do("environment turn=no_tables")
    assert kvm.access(1) == "error"
    assert kvm.vcpu.arch.mmu_page_cache == 0
    assert kvm.entry(1) == 0

    kvm.do("environment turn=plenty")
    assert kvm.access(1) == "done"
    assert kvm.lost == []


@riscv
def test_pages_that_were_set_aside_last_for_another_fault(kvm):
    kvm.access(1)
    kvm.vcpu.arch.mmu_page_cache = kvm.vm.arch.levels
    kvm.do("environment turn=no_tables")

    assert kvm.access(2) == "done"
    kvm.vcpu.arch.mmu_page_cache -= 1
    assert kvm.access(3) == "error"
    assert kvm.lost == []


@pytest.mark.kvmarch(arch="riscv", kernel="v7.1,v7.2")
def test_a_logged_write_in_place_needs_no_memory_since_v7_2(kvmarch_case, kvm):
    kvm.access(1)
    kvm.slot(flags=LOG_DIRTY_PAGES)
    kvm.vcpu.arch.mmu_page_cache = 0
    kvm.do("environment turn=no_tables")

    in_place = kvmarch_case.release >= (7, 2)
    assert kvm.access(1, "write") == ("done" if in_place else "error")
    assert kvm.lost == []


@pytest.mark.kvmarch(arch="riscv", kernel="v7.2", with_="riscv-eager-split")
@pytest.mark.parametrize(("turn", "level"), [("plenty", 0), ("no_tables", 1)])
def test_an_eager_split_goes_as_far_as_memory_for_tables(kvmarch_boot, turn, level):
    kvm = kvmarch_boot(pages=1536)
    vm = kvm.vm
    for gfn in (512, 1024):
        vm.arch.split_page_cache = vm.arch.levels
        leaf = leaf_pte(gfn, writable=True)
        assert set_pte(vm, vm.arch.pgd, gfn, 1, leaf, SplitCache(vm)) == 0
    vm.arch.split_page_cache = 0
    kvm.do(f"environment turn={turn}")

    assert kvm.slot(flags=LOG_DIRTY_PAGES) == 0
    assert [kvm.k.entry.fn(vm, gfn)[1] for gfn in (512, 1024)] == [level] * 2
    assert kvm.lost == []
