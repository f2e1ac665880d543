"""The host's own page tables."""

import pytest

from kvmarch.kernel.mmap import madvise_dontneed


@pytest.mark.parametrize(
    ("release", "freed"), [((6, 13), False), ((6, 14), True), ((7, 0), True)]
)
def test_an_empty_table_makes_room_for_a_huge_page_since_v6_14(machine, release, freed):
    one = machine(release, pages=512, huge=True)
    assert len(one.mm.pmds) == 1
    one.do(madvise_dontneed(one.mm, one.hva(1), one.hva(2)))
    one.do(madvise_dontneed(one.mm, one.hva(0), one.hva(512)))
    assert bool(one.mm.pte_tables) == (not freed)

    one.slot(0, pages=512)
    one.access(3, "write")
    assert len(one.mm.pmds) == freed


def test_a_table_goes_only_if_all_of_it_is_dropped_at_once(machine):
    one = machine((6, 14), pages=512, huge=True)
    one.do(madvise_dontneed(one.mm, one.hva(0), one.hva(1)))
    one.do(madvise_dontneed(one.mm, one.hva(1), one.hva(512)))

    assert not one.mm.ptes
    assert one.mm.pte_tables
