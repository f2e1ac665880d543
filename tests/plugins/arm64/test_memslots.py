"""Memslot changes."""

import errno

import pytest

from kvmarch.kernel.memslots import LOG_DIRTY_PAGES

EVERY = (
    pytest.param((3, 16), id="v3.16"),
    pytest.param((4, 15), id="v4.15"),
    pytest.param((5, 4), id="v5.4"),
    pytest.param((5, 12), id="v5.12"),
    pytest.param((6, 1), id="v6.1"),
    pytest.param((6, 12), id="v6.12"),
    pytest.param((7, 2), id="v7.2"),
)


@pytest.mark.parametrize("release", EVERY)
def test_deleted_slot_leaves_nothing(machine, release):
    m = machine(release)
    m.slot()
    m.access(0, 5)

    m.slot(pages=0)
    assert len(m.vm.tables.live) == 1
    assert m.vcpu.tlb.entries == {}
    assert m.access(0) == "mmio"
    assert m.lost == []


@pytest.mark.parametrize("release", EVERY)
def test_moved_slot_is_faulted_anew(machine, release):
    m = machine(release)
    m.slot()
    m.access(0)

    m.slot(gfn=0x100)
    assert m.access(0) == "mmio"
    assert m.access(0x100) == "done"
    assert m.field(0x100, "pfn") == m.pfn(0)
    assert m.lost == []


@pytest.mark.parametrize("release", EVERY)
def test_flags_keep_entries(machine, release):
    m = machine(release)
    m.slot()
    m.access(0, how="write")
    pfn = m.field(0, "pfn")

    m.slot(flags=LOG_DIRTY_PAGES)
    assert (m.field(0, "pfn"), m.field(0, "w")) == (pfn, 0)


@pytest.mark.parametrize(
    ("release", "options", "gfn", "result"),
    [
        pytest.param((5, 11), {}, (1 << 28) - 16, errno.EFAULT, id="v5.11 at limit"),
        pytest.param((5, 12), {}, (1 << 28) - 16, 0, id="v5.12 at the limit"),
        pytest.param((5, 11), {}, (1 << 28) - 17, 0, id="v5.11 below the limit"),
        pytest.param((6, 1), {}, (1 << 28) - 15, errno.EFAULT, id="beyond 40 bits"),
        pytest.param((6, 1), {"ipa": 44}, (1 << 28) - 15, 0, id="44 bits"),
    ],
)
def test_ipa_limit(machine, release, options, gfn, result):
    m = machine(release, **options)

    assert m.do(m.region(gfn=gfn)) == result


@pytest.mark.parametrize(
    ("release", "slots"),
    [
        pytest.param((4, 4), 32, id="v4.4"),
        pytest.param((4, 12), 512, id="v4.12"),
        pytest.param((5, 14), 512, id="v5.14"),
        pytest.param((5, 15), 32767, id="v5.15"),
    ],
)
def test_number_of_slots(machine, release, slots):
    m = machine(release)

    assert m.do(m.region(slot=slots, gfn=0x1000)) == errno.EINVAL
    assert m.do(m.region(slot=slots - 1, gfn=0x1000)) == 0
