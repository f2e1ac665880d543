"""The step tables of the fact sheet, and what the releases change."""

from errno import ENOMEM

import pytest
from kvmarch import LOG_DIRTY_PAGES
from kvmarch.kernel.mmu_notifier import (
    mmu_notifier_clear_flush_young,
    mmu_notifier_clear_young,
)

from kvmarch_loongarch.vpid import FIRST_VERSION, VPID_MASK, check_vpid

pytestmark = pytest.mark.kvmarch(arch="loongarch")


def flags(one, gfn):
    """Return the bits of an entry beside its frame number."""
    return one.entry(gfn) & 0x3FFF


def test_the_table_of_section_6(kvmarch_bench):
    one = kvmarch_bench()
    one.slot(flags=LOG_DIRTY_PAGES)
    span = one.mm, one.at(2), one.at(3)

    one.access(2, "read")
    assert flags(one, 2) == 0x291
    one.access(2, "write")
    assert flags(one, 2) == 0x393
    assert one.do("dirty_get id=0") == (0, 0b100)
    assert flags(one, 2) == 0x291
    assert one.do(mmu_notifier_clear_flush_young(*span))
    assert flags(one, 2) == 0x290
    one.access(2, "write")
    assert flags(one, 2) == 0x393
    one.do("dontneed memory=ram page=2 pages=1")
    assert one.k.entry.fn(one.vm, 2) == (0, 0)
    assert one.lost == []


def test_a_block_is_huge_again_once_its_table_is_gone(kvmarch_bench):
    """Steps 9 to 11 of the table."""
    one = kvmarch_bench(pages=2048, page_size=16384, thp=True)
    one.slot(flags=LOG_DIRTY_PAGES)
    one.access(2, "write")
    empty = one.k.entry.fn(one.vm, 1 << 20)[0]
    one.slot()
    one.access(3, "read")

    assert [one.k.entry.fn(one.vm, gfn)[1] for gfn in (2, 3)] == [0, 0]
    assert flags(one, 3) == 0x393
    assert [table.level for table in one.vm.tables.live.values()] == [2, 1, 0]
    assert one.slot(pages=0) == 0
    assert one.k.entry.fn(one.vm, 2) == (empty, 1)
    assert [table.level for table in one.vm.tables.live.values()] == [2, 1]
    one.slot()
    one.access(2, "read")
    entry, level = one.k.entry.fn(one.vm, 2)
    assert (entry & 0x3FFF, level) == (0x3D3, 1)
    assert entry >> 14 == one.pfn(0)
    assert one.lost == []


@pytest.mark.parametrize("release", [(6, 8), (7, 2)])
def test_a_flush_is_a_new_vpid_of_every_vcpu(kvmarch_bench, release):
    one = kvmarch_bench(release, vcpus=2)
    one.slot()
    one.access(2)
    before = one.vcpu.arch.vpid
    one.do("dontneed memory=ram page=2 pages=1")
    one.access(2)

    assert one.vcpu.arch.vpid == before + 1
    assert "tlb_flush" in one.vm.vcpus[1].requests


def test_aging_without_a_flush_leaves_the_tlb_alone(kvmarch_bench):
    one = kvmarch_bench()
    one.slot()
    one.access(2)
    exits = one.vcpu.exits["invalid"]
    span = one.mm, one.at(2), one.at(3)

    assert one.do(mmu_notifier_clear_young(*span))
    one.access(2)
    assert one.vcpu.exits["invalid"] == exits
    assert not one.do(mmu_notifier_clear_young(*span))


def test_numbers_wrap_and_take_everything_with_them(kvmarch_bench):
    one = kvmarch_bench()
    one.slot()
    one.access(2)
    one.vcpu.arch.cache = FIRST_VERSION | VPID_MASK
    one.vcpu.arch.vpid = 0

    assert check_vpid(one.vcpu)
    assert one.vcpu.arch.vpid == 2 * FIRST_VERSION + 1
    assert one.vcpu.arch.gid == 1
    assert one.vcpu.tlb.entries == {}


@pytest.mark.parametrize(
    ("release", "ptw", "exits"),
    [
        pytest.param((6, 16), True, 0, id="v6.16 walker"),
        pytest.param((6, 16), False, 1, id="v6.16 software"),
        pytest.param((6, 17), True, 1, id="v6.17 walker"),
    ],
)
def test_a_walker_sets_d_where_w_is_left(kvmarch_bench, release, ptw, exits):
    one = kvmarch_bench(release, ptw=ptw)
    one.slot()
    one.access(2, "write")
    one.slot(flags=LOG_DIRTY_PAGES)
    before = sum(one.vcpu.exits[why] for why in ("invalid", "modified"))

    one.access(2, "write")

    after = sum(one.vcpu.exits[why] for why in ("invalid", "modified"))
    assert after - before == exits
    assert one.do("dirty_get id=0") == (0, 0b100 if exits else 0)


@pytest.mark.parametrize(
    ("release", "gfns"), [((6, 12), 1 << 33), ((6, 14), 1 << 34)], ids=str
)
def test_the_guest_has_so_many_addresses(kvmarch_bench, release, gfns):
    one = kvmarch_bench(release)

    assert one.vm.arch.gfns == gfns
    assert one.slot(gfn=gfns - 15) == ENOMEM
    assert one.slot(gfn=gfns - 16) == 0


@pytest.mark.parametrize(
    ("release", "access", "how"),
    [
        ((6, 14), "read", "mmio"),
        ((6, 18), "read", "exception"),
        ((6, 8), "exec", "exception"),
    ],
    ids=str,
)
def test_beyond_them(kvmarch_bench, release, access, how):
    one = kvmarch_bench(release)
    one.slot()

    assert one.access(one.vm.arch.gfns, access) == how


def test_without_memory_for_tables_it_looks_like_mmio(kvmarch_bench):
    one = kvmarch_bench(page_size=4096)
    one.slot()
    one.do("environment turn=no_tables")

    assert one.access(3) == "mmio"
    assert "stale-mmio" in one.lost


def test_an_instruction_from_nowhere_is_an_address_error(kvmarch_bench):
    one = kvmarch_bench()
    one.slot()

    assert one.access(65, "exec") == "exception"
    assert one.access(65, "read") == "mmio"
    assert one.lost == []
