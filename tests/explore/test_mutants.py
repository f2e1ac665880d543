"""A kernel with one step wrong: exploring a small scenario says which property goes."""

import json
from functools import cache

import pytest
from kvmarch_arm64 import pgtable

from kvmarch import plugins
from kvmarch.changes import find_release
from kvmarch.explore.search import Bounds, explore
from kvmarch.explore.verdict import verdicts
from kvmarch.kernel import dirty_log, notifier, retry
from kvmarch.machine.locks import Lock, Rcu
from kvmarch.scenarios.file import load
from kvmarch.scenarios.program import ScenarioProgram
from kvmarch.scenarios.properties import ALWAYS_ON


def race(setup, memory='{ name = "ram", pages = 1 }', **tasks):
    """Return the text of a scenario in which each task takes some steps."""
    lines = [f"setup = {json.dumps(setup)}", "[vm]", f"memory = [{memory}]"]
    for name, steps in tasks.items():
        lines += ["[[task]]", f'name = "{name}"', f"steps = {json.dumps(steps)}"]
    return "\n".join(lines)


SLOT = "slot id=0 memory=ram gfn=0"
LOGS = f"{SLOT} flags=log_dirty"
READ, WRITE = "read gfn=0", "write gfn=0"
THROW = "dontneed memory=ram page=0"
TWO = '{ name = "ram", pages = 2 }'
MORE = '{ name = "ram", pages = 1 }, { name = "more", pages = 1 }'

ZAP = race([SLOT, "read gfn=1"], TWO, guest=[READ], madvise=[THROW])
MAPPED = race([SLOT, READ], TWO, guest=[READ], madvise=[THROW])
DELETE = race([SLOT, READ], guest=[READ], vmm=["slot_delete id=0"])
AGE = race(
    [SLOT, READ],
    kswapd=["age memory=ram page=0 how=clear_young"],
    vmm=["slot_delete id=0"],
)
CREATE = race(
    [SLOT],
    MORE,
    guest=["read gfn=4", "read gfn=4"],
    vmm=["slot id=1 memory=more gfn=4"],
)
LOG = race([LOGS, WRITE], guest=[WRITE], vmm=["dirty_get id=0", "dirty_get id=0"])
CHANGE = race([SLOT], vmm=["slot_delete id=0"], madvise=[THROW])
PROTECT = race(
    [SLOT, WRITE], guest=[WRITE], mprotect=["mprotect memory=ram page=0 prot=r"]
)


async def nothing(*_args):
    pass


def forgets_the_sequence(patch, k):
    def end(vm):
        vm.mmu_invalidate_in_progress -= 1

    patch.setattr(notifier.kvm_mmu_invalidate_end, "fn", end)


def never_retries(patch, k):
    for check in (
        retry.mmu_invalidate_retry,
        retry.mmu_invalidate_retry_hva,
        retry.mmu_invalidate_retry_gfn,
    ):
        patch.setattr(check, "fn", lambda *_args: False)


def forgets_the_count(patch, k):
    def begin(vm):
        vm.mmu_invalidate_range_start = vm.mmu_invalidate_range_end = -1

    def end(vm):
        vm.mmu_invalidate_seq += 1

    patch.setattr(notifier.kvm_mmu_invalidate_begin, "fn", begin)
    patch.setattr(notifier.kvm_mmu_invalidate_end, "fn", end)


def counts_at_the_end_only(patch, k):
    patch.setattr(notifier.kvm_mmu_invalidate_begin, "fn", lambda vm: None)


def drops_the_flush(patch, k):
    patch.setattr(notifier, "kvm_flush_remote_tlbs", nothing)


def flushes_nothing(patch, k):
    vars(k)["flush_remote_tlbs"] = nothing


def tells_no_range(patch, k):
    vars(k)["range_of_slot"] = nothing


def takes_the_lock_shared(patch, k):
    write = Lock.write

    def shared(lock):
        return lock.read() if lock.name == "mmu_lock" else write(lock)

    patch.setattr(Lock, "write", shared)


def never_counts_down(patch, k):
    patch.setattr(notifier.active_down, "fn", lambda vm: None)


def keeps_the_shadow(patch, k):
    vars(k)["flush_shadow_memslot"] = nothing


def keeps_the_generation(patch, k):
    vars(k)["mmio_cache_hit"] = type(k.mmio_cache_hit)(
        lambda vcpu, gfn: vcpu.mmio_gfn == gfn, name="hit?"
    )


def drops_the_flush_of_the_log(patch, k):
    patch.setattr(dirty_log, "kvm_flush_remote_tlbs_memslot", nothing)


def protects_after_the_report(patch, k):
    """Swap two steps: the bits are taken when the pages are still writable."""
    take = k.take_dirty_log

    async def late(vm, slot):
        bits = await dirty_log._copy(vm, slot)
        await dirty_log._reported(vm, slot, bits)
        await take(vm, slot)
        return bits

    vars(k)["take_dirty_log"] = late


def counts_after_the_unmap(patch, k):
    """Swap two steps of start(): a fault in between maps the page again."""

    async def start(vm, start, end, may_block):
        await vm.k.invalidation_begins(vm, start, end)
        async with vm.srcu.read():
            slots = await vm.k.notified_slots(vm, start, end)
            async with vm.mmu_lock.write():
                owed = await notifier._unmap_slots(vm, slots, may_block)
                if owed is not None:
                    await notifier.kvm_flush_remote_tlbs(vm)
            async with vm.mmu_lock.write():
                await notifier.kvm_mmu_invalidate_begin(vm)
                await vm.k.range_of_start(vm, start, end)
        await notifier._started(vm, start, end)

    vars(k)["invalidate_range_start"] = start


def frees_without_a_grace_period(patch, k):
    patch.setattr(Rcu, "call", lambda _rcu, callback: callback())


def relaxes_to_another_page(patch, k):
    relaxed = pgtable.relaxed
    patch.setattr(pgtable, "relaxed", lambda *args: relaxed(*args) ^ 1 << 12)


MUTANTS = [
    (forgets_the_sequence, "freed-page", ZAP, "x86", "v6.1"),
    (forgets_the_sequence, "freed-page", ZAP, "arm64", "v6.1"),
    (never_retries, "freed-page", ZAP, "arm64", "v6.1"),
    (forgets_the_count, "touched-after-start", ZAP, "x86", "v6.1"),
    (counts_at_the_end_only, "balanced", ZAP, "x86", "v6.1"),
    (drops_the_flush, "flush-owed", MAPPED, "x86", "v6.1"),
    (flushes_nothing, "freed-page", MAPPED, "x86", "v6.1"),
    (flushes_nothing, "stale-permission", PROTECT, "x86", "v6.1"),
    (tells_no_range, "warn", ZAP, "x86", "v6.8"),
    (takes_the_lock_shared, "locks", ZAP, "x86", "v6.1"),
    (never_counts_down, "ends", CHANGE, "x86", "v6.1"),
    (keeps_the_shadow, "no-slot", DELETE, "x86", "v6.1"),
    (keeps_the_generation, "stale-mmio", CREATE, "x86", "v6.1"),
    (drops_the_flush_of_the_log, "lost-dirty", LOG, "x86", "v6.1"),
    (protects_after_the_report, "lost-dirty", LOG, "x86", "v6.1"),
    (counts_after_the_unmap, "touched-after-start", ZAP, "x86", "v6.1"),
    (frees_without_a_grace_period, "table-memory", AGE, "x86", "v6.15"),
    (relaxes_to_another_page, "break-before-make", LOG, "arm64", "v6.1"),
]


@cache
def loaded():
    return plugins.load()


def lost(folder, text, arch, release, mutate=None, patch=None):
    """Return the verdict on every property that the kernel, or a mutant, loses."""
    path = folder / "small.toml"
    path.write_text(f'title = "small"\n{text}')
    plugin = loaded().get(arch)
    k = plugins.link(plugin, find_release(release))
    if mutate is not None:
        mutate(patch, k)
    options = plugin.info.settle(find_release(release), {})
    search = explore(ScenarioProgram(load(path), k, options), bounds=Bounds(seconds=60))
    assert not search.cut
    return {verdict.property: verdict.verdict for verdict in verdicts(search)}


NAMES = [f"{mutate.__name__}-{name}-{arch}" for mutate, name, _, arch, _ in MUTANTS]


@pytest.mark.parametrize(
    ("mutate", "name", "text", "arch", "release"), MUTANTS, ids=NAMES
)
def test_a_mutant_is_caught_by_name(
    tmp_path, monkeypatch, mutate, name, text, arch, release
):
    found = lost(tmp_path, text, arch, release, mutate, monkeypatch)

    assert found[name] in {"sometimes", "always"}


@pytest.mark.parametrize(
    ("text", "arch", "release"), sorted({mutant[2:] for mutant in MUTANTS})
)
def test_the_kernel_itself_loses_nothing(tmp_path, text, arch, release):
    assert lost(tmp_path, text, arch, release) == {}


def test_every_property_that_is_always_on_has_a_mutant():
    assert {name for _, name, _, _, _ in MUTANTS} == {prop.id for prop in ALWAYS_ON}
