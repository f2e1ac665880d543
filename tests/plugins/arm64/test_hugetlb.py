"""Tests for blocks whose size the VMA says."""

import pytest
from kvmarch_arm64.plan import find_vma

from kvmarch.machine.host import Vma


@pytest.fixture
def known(machine):
    def ask(release, *, hugetlb, pages=512, **slot):
        m = machine(release, pages=pages)
        (vma,) = m.mm.vmas
        m.mm.vmas[0] = Vma(vma.start, vma.end, hugetlb=hugetlb)
        made = m.slot(**slot)
        return find_vma.fn(m.vcpu, made, made.base_gfn + 3, False)

    return ask


@pytest.mark.parametrize("release", [(4, 15), (5, 10), (6, 12)])
def test_hugetlb_says_the_size(known, release):
    assert known(release, hugetlb=True).pages == 512
    assert known(release, hugetlb=False).pages == 1


def test_block_must_fit(known):
    assert known((6, 12), hugetlb=True, gfn=1).pages == 1
