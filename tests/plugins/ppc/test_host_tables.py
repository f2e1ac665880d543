"""The host's own page tables."""

import pytest

from kvmarch.kernel.mmap import madvise_dontneed


@pytest.mark.parametrize("release", [(6, 17), (7, 2)])
def test_an_empty_table_stays(radix, release):
    one = radix(release, pages=32, huge=True)
    assert len(one.mm.pmds) == 1
    one.do(madvise_dontneed(one.mm, one.hva(1), one.hva(2)))
    assert not one.mm.pmds

    one.do(madvise_dontneed(one.mm, one.hva(0), one.hva(32)))

    assert not one.mm.ptes
    assert one.mm.pte_tables
