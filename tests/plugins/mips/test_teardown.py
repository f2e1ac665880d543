import pytest

from kvmarch.kernel.boot import destroy_vm
from kvmarch.kernel.mmap import exit_mmap
from kvmarch.kernel.notifier import notifier_release
from kvmarch.machine.run import run

RELEASES = [
    pytest.param((4, 11), "te", id="v4.11-te"),
    pytest.param((4, 12), "rad", id="v4.12-rad"),
    pytest.param((5, 13), "guestid", id="v5.13-guestid"),
    pytest.param((7, 2), "rad", id="v7.2-rad"),
]
FIX = "mips-release-takes-mmu-lock"


def used(machine, *what, **options):
    """Return a machine with three leaf tables."""
    one = machine(*what, pages=1200, **options)
    one.slot()
    for gfn in (0, 600, 1199):
        one.access(gfn, "write")
    return one


@pytest.mark.parametrize("plus", [(), (FIX,)], ids=["mainline", "locked"])
@pytest.mark.parametrize("page_size", ["4K", "64K"])
@pytest.mark.parametrize(("release", "mmu"), RELEASES)
def test_release_frees_all_but_the_root(machine, release, mmu, page_size, plus):
    one = used(machine, release, plus, mmu=mmu, page_size=page_size)
    before = len(one.vm.tables.live)
    since = len(one.world.events)
    one.do(notifier_release(one.vm))

    assert before > 2 or page_size == "64K"
    assert [t.level for t in one.vm.tables.live.values()] == [one.geometry.levels]
    assert one.names(since).count("kvm_make_all_cpus_request") == 1
    assert one.lost == []


@pytest.mark.parametrize("plus", [(), (FIX,)], ids=["mainline", "locked"])
@pytest.mark.parametrize(("release", "mmu"), RELEASES)
def test_exit_and_destruction_leave_no_table(machine, release, mmu, plus):
    one = used(machine, release, plus, mmu=mmu)
    one.do(exit_mmap(one.mm))
    one.do(destroy_vm(one.vm, one.machine.subscriptions["vm"]))

    assert one.vm.tables.live == {}
    assert one.k.entry.fn(one.vm, 0) == (one.geometry.empty[-1], 3)
    assert one.k.leaf_table.fn(one.vm, 0, 1) is None
    assert one.lost == []


def test_destruction_alone(machine):
    one = used(machine)
    one.do(destroy_vm(one.vm, one.machine.subscriptions["vm"]))

    assert one.vm.tables.live == {}
    assert one.lost == []


def test_release_takes_no_mmu_lock(machine):
    one = used(machine)
    seen = []
    one.world.observer = lambda _task, step: seen.append(step.op.name)
    one.do(notifier_release(one.vm))

    assert "lock mmu_lock" not in seen


def two_releases(one, steps):
    """Let release run twice; the second begins after some steps of the first."""
    first = one.task("exit_mmap", notifier_release(one.vm))
    second = one.task("unregister", notifier_release(one.vm))
    moved = sum(one.step(first) for _ in range(steps) if not first.done)
    run(one.world, [second, first])
    return moved < steps


@pytest.mark.parametrize(
    ("plus", "lost"),
    [
        pytest.param((), {"table-memory"}, id="mainline"),
        pytest.param((FIX,), set(), id="locked"),
    ],
)
@pytest.mark.parametrize("release", [(4, 11), (6, 1), (7, 1)], ids=str)
def test_two_releases_at_once(machine, release, plus, lost):
    """M1: both find the same leaf table, and both free it."""
    found = set()
    steps = 0
    whole = False
    while not whole:
        one = used(machine, release, plus)
        whole = two_releases(one, steps)
        found.update(one.lost)
        steps += 1

    assert found == lost


def test_a_table_is_freed_twice(machine):
    one = used(machine)
    first = one.task("exit_mmap", notifier_release(one.vm))
    second = one.task("unregister", notifier_release(one.vm))
    one.advance(first, "zap table")
    one.advance(second, "zap table")
    one.advance(first, "free table")
    one.step(first)
    one.advance(second, "free table")
    one.step(second)

    assert any("freed twice" in v.sentence for v in one.world.violations)
