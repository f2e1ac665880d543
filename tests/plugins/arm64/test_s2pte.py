import pytest
from kvmarch_arm64.layout import decode, make_layout
from kvmarch_arm64.s2pte import (
    kvm_pfn_pte,
    kvm_pmd_mkhuge,
    kvm_s2pte_exec,
    kvm_s2pte_mkexec,
    kvm_s2pte_mkwrite,
    kvm_s2pte_readonly,
    kvm_set_s2pte_readonly,
    page_s2,
    pte_mkold,
    pte_mkyoung,
)

PAGE = 0x00400000800007FF


@pytest.mark.parametrize(
    ("options", "xn", "entry"),
    [
        pytest.param({"device": False}, False, 0x8000077F, id="v4.11"),
        pytest.param({"device": False}, True, 0x004000008000077F, id="v4.19"),
        pytest.param({"device": True}, False, 0x0040000080000747, id="device"),
    ],
)
def test_old_page_s2(options, xn, entry):
    layout = make_layout(invalid="zero")

    pte = kvm_pfn_pte(layout, 0x80000, page_s2(layout, xn=xn, **options))

    assert pte == entry
    assert decode(layout, pte, 3).kind == "page"


def test_old_macros():
    layout = make_layout(invalid="zero")
    pte = kvm_pfn_pte(layout, 0x80000, page_s2(layout, xn=True))

    writable = kvm_s2pte_mkwrite(pte)
    executable = kvm_s2pte_mkexec(layout, writable)

    assert writable == PAGE
    assert kvm_s2pte_readonly(pte)
    assert not kvm_s2pte_readonly(writable)
    assert kvm_set_s2pte_readonly(writable) == pte
    assert kvm_s2pte_exec(layout, executable)
    assert not kvm_s2pte_exec(layout, writable)
    assert pte_mkyoung(pte_mkold(pte)) == pte
    assert decode(layout, kvm_pmd_mkhuge(pte), 2).kind == "block"
