"""What the two designs do, step by step, with the values of the fact sheet."""

from errno import EINVAL

import pytest
from kvmarch import LOG_DIRTY_PAGES, EntryError, KvmarchError
from kvmarch.kernel.mmu_notifier import mmu_notifier_clear_flush_young

pytestmark = pytest.mark.kvmarch(arch="s390")

HOLE = 0x0001000500000400
SHARED = pytest.mark.parametrize(
    "release", [(4, 11), (5, 4), (6, 13), (6, 14), (6, 19)]
)
OWN = pytest.mark.parametrize("release", [(7, 0), (7, 1), (7, 2)])


def bits(one, gfn):
    """Return the bits of an entry beside its frame number."""
    return one.entry(gfn) & 0xFFF


# -- own tables --------------------------------------------------------------------


@OWN
def test_the_step_table_of_section_7(kvmarch_bench, release):
    one = kvmarch_bench(release)
    one.slot(flags=LOG_DIRTY_PAGES)
    span = one.mm, one.at(2), one.at(3)

    assert one.entry(2) == 0x400
    one.access(2, "read")
    assert bits(one, 2) == 0x225
    one.access(2, "write")
    assert bits(one, 2) == 0x02F
    assert one.host.pages[one.pfn(2)].dirty
    assert one.do("dirty_get id=0") == (0, 0b100)
    assert bits(one, 2) == 0x22D
    one.access(2, "write")
    assert bits(one, 2) == 0x02F
    assert one.do(mmu_notifier_clear_flush_young(*span))
    assert bits(one, 2) == 0x623
    assert one.do("dirty_get id=0") == (0, 0b100)
    assert bits(one, 2) == 0x621
    one.do("dontneed memory=ram page=2 pages=1")
    assert one.entry(2) == 0x400
    one.do("slot_delete id=0")
    assert one.entry(2) & ~0xFFF == HOLE & ~0xFFF
    assert one.access(2) == "exception"
    assert one.lost == []


def test_holes_surround_a_slot(kvmarch_bench):
    one = kvmarch_bench()
    one.slot(gfn=4, pages=8)

    kinds = [
        one.k.decode.fn(one.k, one.vm.options, *one.k.entry.fn(one.vm, gfn))[0]
        for gfn in (3, 4, 11, 12, 255, 256, 1 << 19)
    ]
    assert kinds == ["hole", "none", "none", *["hole"] * 4]


def test_deleting_frees_the_tables_that_are_covered(kvmarch_bench):
    one = kvmarch_bench(pages=512)
    before = set(one.vm.tables.live)
    one.slot()
    one.access(0)
    one.access(300)
    tables = len(one.vm.tables.live)
    one.do("slot_delete id=0")

    assert tables == len(before) + 3
    # Both segments were covered, their table was not.
    assert len(one.vm.tables.live) == len(before) + 1


def test_tables_outlive_the_process(kvmarch_bench):
    one = kvmarch_bench()
    one.slot()
    one.access(2)
    entry = one.entry(2)
    one.do("exit_mm")

    assert one.entry(2) == entry


def test_every_flush_is_an_instruction(kvmarch_bench):
    one = kvmarch_bench(vcpus=2)
    one.slot()
    one.access(2, "write")
    one.do("migrate memory=ram page=2")

    assert one.named("tlb_invalidate")
    assert not one.named("kvm_make_all_cpus_request")


# -- the host's tables -------------------------------------------------------------


@SHARED
def test_the_guest_meets_what_the_host_does_at_once(kvmarch_bench, release):
    one = kvmarch_bench(release)
    one.slot()
    one.access(2, "write")
    exits = sum(one.vcpu.exits.values())
    one.do("touch memory=ram pages=3 value=7")
    one.do("ksm_merge memory=ram")
    shared = one.pfn(2)

    assert one.mm.subscriptions is None
    assert one.named("kvm_unmap_hva_range") == []
    assert one.access(2, "read") == "done"
    assert sum(one.vcpu.exits.values()) == exits
    assert one.entry(2) >> 12 == shared
    assert one.access(2, "write") == "done"
    assert one.pfn(2) != shared
    assert one.lost == []


@SHARED
def test_ipte_drops_the_guest_s_translation(kvmarch_bench, release):
    one = kvmarch_bench(release)
    one.slot()
    one.access(2, "write")
    before = len(one.vcpu.tlb.entries)
    one.do("mprotect memory=ram page=2 pages=1 prot=r")

    assert (before, len(one.vcpu.tlb.entries)) == (1, 0)
    assert one.access(2, "read") == "done"
    assert one.access(2, "write") == "exception"


def test_the_host_s_young_bit_serves_both(kvmarch_bench):
    one = kvmarch_bench((6, 1))
    one.slot()
    one.access(2)

    assert one.do("age memory=ram page=2 pages=1 how=clear_young")
    assert bits(one, 2) & 0x400
    assert not one.do("age memory=ram page=2 pages=1 how=clear_young")
    one.access(2)
    assert one.do("age memory=ram page=2 pages=1 how=clear_young")


@SHARED
def test_user_dirty_survives_an_unmap(kvmarch_bench, release):
    one = kvmarch_bench(release)
    one.slot(flags=LOG_DIRTY_PAGES)
    # What the user wrote himself counts, too, once gmap leads to it.
    assert one.do("dirty_get id=0") == (0, 0)
    one.access(2)
    assert one.do("dirty_get id=0") == (0, 0xFFFF)
    assert one.do("dirty_get id=0") == (0, 0)
    one.access(2, "write")
    one.do("dontneed memory=ram page=2 pages=1")
    one.access(2)

    assert one.do("dirty_get id=0") == (0, 0b100)


def test_a_logged_page_that_is_old_stays_logged_when_it_is_read(kvmarch_bench):
    one = kvmarch_bench((6, 1))
    one.slot(flags=LOG_DIRTY_PAGES)
    one.access(2, "write")
    one.do("dirty_get id=0")
    one.do("age memory=ram page=2 pages=1 how=clear_young")
    one.access(2)

    assert bits(one, 2) == 0x33F
    exits = sum(one.vcpu.exits.values())
    one.do("age memory=ram page=2 pages=1 how=clear_young")
    one.access(2, "write")
    assert sum(one.vcpu.exits.values()) == exits + 1
    assert one.do("dirty_get id=0") == (0, 0b100)


@pytest.mark.parametrize(
    ("release", "bit"), [((6, 13), 47), ((6, 14), 15)], ids=["v6.13", "v6.14"]
)
def test_where_user_dirty_is(kvmarch_bench, release, bit):
    one = kvmarch_bench(release)
    one.slot()
    one.access(2, "write")

    assert one.vm.arch.pgstes[one.vpn(2)] == 1 << bit


def test_a_segment_leads_to_the_host_s_page_table(kvmarch_bench):
    one = kvmarch_bench((6, 1), pages=512)
    one.slot()
    one.access(2)
    pa, at = one.k.leaf_table.fn(one.vm, 2, 1)
    linked = one.vm.tables.at(pa).get(at)
    exits = sum(one.vcpu.exits.values())

    assert one.k.leaf_table.fn(one.vm, 2, 0) is None
    assert linked not in one.vm.tables.live
    # The whole segment is linked by the first fault.
    assert one.access(200) == "done"
    assert sum(one.vcpu.exits.values()) == exits
    assert one.k.entry.fn(one.vm, 300)[1] == 1


def test_no_huge_pages_for_the_process(kvmarch_bench):
    assert kvmarch_bench((6, 1)).mm.pmd_order == 0
    assert kvmarch_bench((7, 0)).mm.pmd_order == 8


@pytest.mark.parametrize("release", [(6, 1), (6, 14), (7, 2)])
def test_without_memory_for_tables_kvm_run_fails(kvmarch_bench, release):
    one = kvmarch_bench(release, pages=512)
    one.slot(pages=256)
    one.slot(slot=1, gfn=1 << 19, pages=256, page=256)
    one.access(2)
    one.do("environment turn=no_tables")

    assert one.access(3, "write") == "done"
    assert one.access((1 << 19) + 1) == "error"
    assert one.lost == []


# -- limits ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "errno"), [((6, 19), EINVAL), ((7, 0), EINVAL), ((7, 1), 0)], ids=str
)
def test_slots_must_be_aligned_until_v7_0(kvmarch_bench, release, errno):
    assert kvmarch_bench(release, align=True).slot() == errno
    assert kvmarch_bench(release, align=True, pages=256).slot() == 0
    assert kvmarch_bench(release).slot() == 0


@pytest.mark.parametrize("root", ["segment", "region3", "region2", "region1"])
@pytest.mark.parametrize("release", [(6, 1), (7, 2)])
def test_every_root_maps_its_last_page(kvmarch_bench, release, root):
    one = kvmarch_bench(release, root=root)
    last = one.vm.arch.gfns - 32

    assert one.slot(gfn=last + 17) == EINVAL
    assert one.slot(gfn=last) == 0
    assert one.access(last + 15, "write") == "done"
    assert one.access(last + 16) == "exception"
    assert one.lost == []


def test_the_designs_do_not_mix(kvmarch_bench):
    with pytest.raises(KvmarchError, match="mmu=shared"):
        kvmarch_bench((6, 19), plus=("s390-own-tables",))
    with pytest.raises(KvmarchError, match="mmu=own"):
        kvmarch_bench((7, 0), minus=("s390-own-tables",))


def test_what_is_no_leaf_is_not_repointed(kvmarch_bench):
    one = kvmarch_bench()

    with pytest.raises(EntryError, match="leads to no page"):
        one.k.entry_repoint.fn(one.k, one.vm.options, 0x400, 0, 1)
