"""Rmap words of hash guests: worked values of the fact sheet ppc, 4.4 and 4.5."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvmarch_ppc.hpt import HashWord, make_hash_layout
from kvmarch_ppc.hpte import HPTE_R_C, HPTE_R_R
from kvmarch_ppc.layout import decode
from kvmarch_ppc.rmap import (
    KVMPPC_RMAP_CHANGED,
    KVMPPC_RMAP_INDEX,
    KVMPPC_RMAP_LOCK,
    KVMPPC_RMAP_PRESENT,
    KVMPPC_RMAP_RC_SHIFT,
    KVMPPC_RMAP_REFERENCED,
    RmapHpt,
    hpte_mask_rc,
    lock_rmap,
    rmap_add,
    rmap_harvest,
    rmap_head,
    rmap_remove_last,
    unlock_rmap,
)

HASH = make_hash_layout()
M1 = 0x010000010000002F
M2_LOCKED = 0x010008010000002F
M2_REFERENCED = 0x010001010000002F


def test_worked_words():
    assert rmap_add(0, 0x2F) == M1
    assert lock_rmap(M1) == M2_LOCKED
    assert unlock_rmap(M2_LOCKED) == M1
    assert rmap_harvest(M1, HPTE_R_R) == M2_REFERENCED
    assert rmap_head(M2_LOCKED) == 0x2F


@pytest.mark.parametrize(
    ("word", "kind", "fields"),
    [
        pytest.param(M1, "chained", {"type": 1, "present": 1, "index": 0x2F}, id="M1"),
        pytest.param(
            M2_LOCKED,
            "chained",
            {"type": 1, "lock": 1, "present": 1, "index": 0x2F},
            id="M2 locked",
        ),
        pytest.param(
            M2_REFERENCED,
            "chained",
            {"type": 1, "referenced": 1, "present": 1, "index": 0x2F},
            id="M2 referenced",
        ),
        pytest.param(0, "none", {}, id="never used"),
        pytest.param(KVMPPC_RMAP_LOCK, "none", {"lock": 1}, id="never used, locked"),
        pytest.param(1 << 56, "unchained", {"type": 1}, id="last HPTE gone"),
        pytest.param(0x010000000000002F, "unknown", {}, id="an index without a chain"),
        pytest.param(0x020000010000002F, "unknown", {}, id="another type"),
        pytest.param(0x010400010000002F, "unknown", {}, id="another bit"),
    ],
)
def test_words_decode(word, kind, fields):
    decoded = decode(HASH, word, HashWord.RMAP)

    assert decoded.kind == kind
    assert {n: v for n, v in decoded.fields.items() if v} == fields
    if decoded.format is not None:
        assert decoded.format.pack(**fields) == word


def test_masks_are_the_sheets():
    assert KVMPPC_RMAP_LOCK == 1 << 43
    assert KVMPPC_RMAP_REFERENCED == 1 << 40 == HPTE_R_R << KVMPPC_RMAP_RC_SHIFT
    assert KVMPPC_RMAP_CHANGED == 1 << 39 == HPTE_R_C << KVMPPC_RMAP_RC_SHIFT
    assert KVMPPC_RMAP_PRESENT == 1 << 32
    assert KVMPPC_RMAP_INDEX == 0xFFFFFFFF
    assert KVMPPC_RMAP_RC_SHIFT == 32


words = st.builds(
    RmapHpt.pack,
    lock=st.integers(0, 1),
    referenced=st.integers(0, 1),
    changed=st.integers(0, 1),
    index=st.integers(0, 0xFFFFFFFF),
)


@given(words, st.integers(0, 0xFFFFFFFF))
def test_the_chain_comes_and_goes_and_other_bits_stay(word, index):
    other = ~(KVMPPC_RMAP_PRESENT | KVMPPC_RMAP_INDEX)

    moved, gone = rmap_add(word, index), rmap_remove_last(word)

    assert rmap_head(moved) == index
    assert moved & other == gone & other == word & other
    assert rmap_head(gone) is None
    assert decode(HASH, gone, HashWord.RMAP).kind == "unchained"
    assert rmap_add(gone, index) == moved


@given(st.integers(0, (1 << 64) - 1), words)
def test_r_and_c_of_an_hpte_are_those_that_the_word_has(hpte_r, word):
    rc = HPTE_R_R | HPTE_R_C

    masked = hpte_mask_rc(hpte_r, word)

    assert masked & ~rc == hpte_r & ~rc
    assert masked & rc == hpte_r & rc & word >> KVMPPC_RMAP_RC_SHIFT
    assert hpte_mask_rc(hpte_r, rmap_harvest(word, hpte_r)) == hpte_r
