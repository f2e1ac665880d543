"""change_pte in every situation of the fact sheet arm64, section 4."""

import pytest

from kvmarch import HostPte
from kvmarch.kernel.mmap import madvise_dontneed
from kvmarch.machine.host import PFN_SHIFT, PRESENT

NEW = 0x12345

OLD, LIB, EAGAIN = (4, 19), (5, 11), (6, 1)

RELEASES = (
    pytest.param((3, 16), id="v3.16"),
    pytest.param((4, 15), id="v4.15"),
    pytest.param((4, 19), id="v4.19"),
    pytest.param((5, 9), id="v5.9"),
    pytest.param((5, 10), id="v5.10"),
    pytest.param((5, 11), id="v5.11"),
    pytest.param((5, 12), id="v5.12"),
    pytest.param((5, 15), id="v5.15"),
    pytest.param((6, 1), id="v6.1"),
    pytest.param((6, 2), id="v6.2"),
    pytest.param((6, 9), id="v6.9"),
)


def change(m, gfn, pfn=NEW):
    """Let change_pte point a gfn at another frame, as inside a bracket."""
    slot = m.vm.memslots[0].find(gfn)
    pte = HostPte.pack(pfn=pfn, present=1)
    return m.locked(m.k.set_spte_gfn(m.vm, slot, gfn, pte))


def unmap(m, gfn, end):
    m.locked(m.k.unmap_gfn_range(m.vm, m.vm.memslots[0].find(gfn), gfn, end, True))


def flushes(m):
    return len(m.named("tlb_invalidate"))


@pytest.mark.parametrize(
    ("release", "options", "value"),
    [
        pytest.param((4, 15), {}, 0x000000001234577F, id="no XN before v4.16"),
        pytest.param((5, 4), {}, 0x004000001234577F, id="v5.4"),
        pytest.param((6, 1), {}, 0x004000001234577F, id="v6.1"),
        pytest.param((6, 1), {"fwb": 1}, 0x004000001234575B, id="v6.1 FWB"),
        pytest.param((6, 9), {"dic": 1}, 0x004000001234577F, id="XN even with DIC"),
        pytest.param((5, 4), {"dic": 1}, 0x000000001234577F, id="old, with DIC"),
    ],
)
def test_what_it_installs(machine, release, options, value):
    m = machine(release, **options)
    m.slot()
    m.access(0, 1)
    unmap(m, 0, 1)

    assert change(m, 0) is None
    assert m.entry(0) == value


@pytest.mark.parametrize("release", RELEASES)
def test_empty_entry_beside_a_neighbour_is_installed(machine, release):
    m = machine(release)
    m.slot()
    m.access(0, 1)
    unmap(m, 0, 1)
    before = flushes(m)

    change(m, 0)
    assert (m.field(0, "pfn"), m.field(0, "r"), m.field(0, "w")) == (NEW, 1, 0)
    assert flushes(m) == before
    m.assert_counted()
    assert m.lost == []


@pytest.mark.parametrize("release", RELEASES)
def test_missing_table_stays_missing(machine, release):
    m = machine(release)
    m.slot()
    m.access(0)
    unmap(m, 0, 1)
    assert m.table(0) is None

    change(m, 0)
    assert m.table(0) is None
    assert m.kind(0) in {"empty", "table-remains"}
    m.assert_counted()


@pytest.mark.parametrize("release", RELEASES)
def test_block_stays(machine, release):
    m = machine(release, pages=512, huge=True)
    m.slot(gfn=512)
    m.access(512)
    before = m.entry(512)

    change(m, 513)
    assert m.entry(513) == before
    m.assert_counted()


@pytest.mark.parametrize(
    ("release", "flushed", "writable"),
    [
        pytest.param((4, 15), 1, 0, id="v4.15 breaks and makes"),
        pytest.param((5, 4), 1, 0, id="v5.4 breaks and makes"),
        pytest.param((5, 10), 1, 0, id="v5.10 breaks and makes"),
        pytest.param((5, 12), 0, 1, id="v5.12 refuses"),
        pytest.param((6, 1), 0, 1, id="v6.1 refuses"),
        pytest.param((6, 9), 0, 1, id="v6.9 refuses"),
    ],
)
def test_same_frame_with_other_permissions(machine, release, flushed, writable):
    m = machine(release)
    m.slot()
    m.access(0, how="write")
    before = flushes(m)

    change(m, 0, m.pfn(0))
    assert m.field(0, "w") == writable
    assert flushes(m) - before == flushed
    assert not m.vcpu.tlb.entries if flushed else m.vcpu.tlb.entries
    m.assert_counted()


@pytest.mark.parametrize(
    ("release", "flushed"),
    [
        pytest.param((4, 15), 1, id="v4.15 breaks and makes the same"),
        pytest.param((4, 19), 0, id="v4.19 skips"),
        pytest.param((5, 10), 0, id="v5.10 skips"),
        pytest.param((5, 12), 0, id="v5.12 refuses"),
        pytest.param((6, 9), 0, id="v6.9 refuses"),
    ],
)
def test_identical_entry(machine, release, flushed):
    m = machine(release)
    m.slot()
    m.protect(0)
    m.access(0)
    entry, before = m.entry(0), flushes(m)

    change(m, 0, m.pfn(0))
    assert m.entry(0) == entry
    assert flushes(m) - before == flushed
    m.assert_counted()


@pytest.mark.parametrize("release", RELEASES)
def test_other_frame_is_broken_and_made(machine, release):
    m = machine(release)
    m.slot()
    m.access(0, how="write")

    change(m, 0)
    assert (m.field(0, "pfn"), m.field(0, "w")) == (NEW, 0)
    assert not m.vcpu.tlb.entries
    m.assert_counted()
    assert m.lost == []


@pytest.mark.parametrize("release", RELEASES)
def test_without_a_root_nothing_happens(machine, release):
    m = machine(release)
    slot = m.slot()
    m.access(0)
    m.do(m.k.arm64_free_stage2_pgd(m.vm))

    m.locked(m.k.set_spte_gfn(m.vm, slot, 0, HostPte.pack(pfn=NEW, present=1)))
    assert m.entry(0) == 0
    assert m.lost == []


def test_leaked_reference_without_the_fix_of_the_count(machine):
    """5c646b7e1d8b (v5.10): valid over valid took a second reference."""
    m = machine((5, 10), minus=["update-refcount"])
    m.slot()
    m.access(0)

    change(m, 0)
    assert m.table(0).refs == 3
    unmap(m, 0, 1)
    assert m.table(0) is not None


async def _replace_page(m, page, pfn):
    """Do what KSM and COW do: bracket, change_pte, new PTE."""
    mm, k = m.mm, m.k
    start, end = m.hva(page), m.hva(page + 1)
    vpn = start // m.page_size
    await k.change_pte_start(mm, start, end)
    async with mm.ptl.write():
        await k.set_pte_at_notify(mm, vpn, pfn << PFN_SHIFT | PRESENT)
    await k.change_pte_end(mm, start, end)


@pytest.mark.parametrize(
    ("release", "neighbour", "left"),
    [
        pytest.param((5, 4), True, True, id="v5.4"),
        pytest.param((6, 1), True, True, id="v6.1"),
        pytest.param((6, 9), True, True, id="v6.9"),
        pytest.param((6, 9), False, False, id="v6.9 alone in its table"),
        pytest.param((6, 12), True, False, id="v6.12 has no change_pte"),
    ],
)
def test_race_of_zap_and_change_pte(machine, release, neighbour, left):
    """The entry of a page that is freed outlives both brackets."""
    m = machine(release)
    m.slot()
    m.access(0, 1) if neighbour else m.access(0)
    new = m.host.alloc("anon", 7)
    page = m.host.pages[new]
    page.refs = page.maps = 1
    zap = m.task("zap", madvise_dontneed(m.mm, m.hva(0), m.hva(1)))

    m.advance(zap, "lock mm ptl")
    m.do(_replace_page(m, 0, new), "ksm")
    m.finish(zap)

    assert (m.kind(0) == "page") is left
    if left:
        assert m.field(0, "pfn") == new
        assert page.freed
        m.access(0)
        assert "freed-page" in m.lost
