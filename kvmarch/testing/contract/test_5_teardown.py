"""Tier 5: nothing is left in the end."""

__all__ = ["test_destruction_leaves_no_table", "test_the_tour_loses_nothing"]


import pytest

from kvmarch.changes import COMPARED
from kvmarch.kernel.boot import destroy_vm
from kvmarch.kernel.mmap import (
    exit_mmap,
)
from kvmarch.scenarios.file import find, load
from kvmarch.scenarios.play import play
from kvmarch.testing.bench import Bench
from kvmarch.testing.cases import Case

TIER = pytest.mark.kvmarch(tier=5)


@TIER
@pytest.mark.parametrize("process_first", [True, False], ids=["exit", "close"])
def test_destruction_leaves_no_table(
    kvmarch_case: Case, kvm: Bench, process_first: bool
) -> None:
    for gfn in range(4):
        kvm.access(gfn, "write")
    closing = destroy_vm(kvm.vm, kvm.machine.subscriptions["vm"])
    if process_first:
        kvm.do(exit_mmap(kvm.mm))
        kvm.do(closing)
    else:
        kvm.do(closing)
        kvm.do(exit_mmap(kvm.mm))

    left = {**kvm.vm.tables.live, **kvm.vm.tables.retired}
    assert (left == {}) is kvmarch_case.keeps("frees-tables")
    assert kvm.lost == []


@pytest.mark.kvmarch(tier=5, kernel=COMPARED)
def test_the_tour_loses_nothing(kvmarch_case: Case) -> None:
    played = play(load(find("tour")), kvmarch_case.link(), kvmarch_case.options())

    assert played.outcome.end == "done"
    assert played.violations == []
    left = played.machine.vm.tables.live
    assert (left == {}) is kvmarch_case.keeps("frees-tables")
