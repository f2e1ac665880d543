"""Measure kvmarch, and print each figure beside what it is compared with.

    python benchmarks/run.py            everything
    python benchmarks/run.py cold steps tables

Machines are noisy: quote ratios of one run, not single times.
"""

import gc
import subprocess
import sys
import time
from statistics import median
from typing import Any

from kvmarch.changes import find_release
from kvmarch.kernel.boot import Machine, boot
from kvmarch.kernel.memory_region import Region, set_memory_region
from kvmarch.kernel.mmap import madvise_dontneed, populate
from kvmarch.kernel.reclaim import age
from kvmarch.kernel.vcpu import run_guest
from kvmarch.machine.host import Vma
from kvmarch.machine.run import run_path
from kvmarch.plugins import Plugins, link, load
from kvmarch.scenarios.file import find
from kvmarch.scenarios.file import load as load_scenario
from kvmarch.scenarios.play import play
from kvmarch.scenarios.records import FIRST_HVA

RELEASES = ("v4.15", "v5.10", "v6.1", "v6.12")


def timed(function: Any) -> float:
    """Return the CPU seconds of one call, with the garbage collector off."""
    gc.collect()
    gc.disable()
    try:
        begun = time.process_time()
        function()
        return time.process_time() - begun
    finally:
        gc.enable()


def wall(command: list[str]) -> float:
    """Return the median wall seconds of a command over seven runs."""
    times = []
    for _ in range(8):
        begun = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - begun)
    return median(times[1:])


def cold(plugins: Plugins) -> None:
    """Time the main command from a cold start, against importing its libraries."""
    base = wall([sys.executable, "-c", "import click, pluggy, tabulate"])
    command = [sys.executable, "-m", "kvmarch", "compare", "change_pte"]
    for name in RELEASES:
        command += ["--kernel", name]
    mine = wall(command)
    cells = len(plugins.loaded) * len(RELEASES)
    print(
        f"compare change_pte, {cells} cells: {mine:.3f} s; imports alone "
        f"{base:.3f} s; ratio {mine / base:.1f} (at most 8)"
    )


def steps(plugins: Plugins) -> None:
    """Time straight simulation in steps per second, and the tour."""
    tour = load_scenario(find("tour"))
    for arch in plugins.loaded.values():
        release = find_release("v6.1")
        options = arch.info.settle(release, {})
        k = link(arch, release)
        play(tour, k, options)
        seconds = min(timed(lambda k=k, o=options: play(tour, k, o)) for _ in range(5))
        machine = boot(k, options, traced=False)
        mm = machine.mm
        size = 256 << mm.page_shift
        mm.add_vma(Vma(FIRST_HVA, FIRST_HVA + size))
        populate(mm, FIRST_HVA, FIRST_HVA + size)
        call(machine, set_memory_region(machine.vm, Region(0, 0, 0, size, FIRST_HVA)))
        begun_steps = machine.world.steps

        def rounds(machine: Machine = machine, size: int = size) -> None:
            accesses = tuple(("write", gfn) for gfn in range(256))
            for _ in range(40):
                call(machine, run_guest(machine.vm.vcpus[0], accesses, "hlt"))
                call(
                    machine,
                    age(machine.mm, FIRST_HVA, FIRST_HVA + size, "clear_flush_young"),
                )
                call(
                    machine,
                    madvise_dontneed(machine.mm, FIRST_HVA, FIRST_HVA + size),
                )

        spent = timed(rounds)
        rate = (machine.world.steps - begun_steps) / spent
        print(
            f"{arch.name}: {rate / 1000:,.0f} thousand steps/s (at least 300); "
            f"tour {seconds * 1000:.0f} ms (at most 50)"
        )


def call(machine: Machine, path: Any) -> Any:
    """Run one path."""
    return run_path(machine.world, path)


def tables(plugins: Plugins) -> None:
    """Time dense tables: map, write-protect, age and zap, for growing guests."""
    for name in ("x86", "arm64"):
        if name not in plugins.loaded:
            continue
        arch = plugins.loaded[name]
        release = find_release("v6.1")
        options = arch.info.settle(release, {"page_size": "4096"})
        k = link(arch, release)
        for order in (16, 18, 20, 22):
            guest_us = map_by_guest(new_guest(k, options, 1 << order), 1 << order)
            measure(name, new_guest(k, options, 1 << order), 1 << order, guest_us)


def new_guest(k: Any, options: Any, pages: int) -> Machine:
    """Return a machine whose one memslot has its host pages, and nothing mapped."""
    machine = boot(k, options, dense=True, traced=False)
    size = pages << 12
    machine.mm.add_vma(Vma(FIRST_HVA, FIRST_HVA + size))
    populate(machine.mm, FIRST_HVA, FIRST_HVA + size)
    call(machine, set_memory_region(machine.vm, Region(0, 0, 0, size, FIRST_HVA)))
    return machine


def map_by_guest(machine: Machine, pages: int) -> float:
    """Let a guest write each page once; return microseconds per page.

    Each page costs the access that faults, the fault, the way back into the guest
    and the access again: two walks, two or three steps more than the fault itself.
    """
    vcpu = machine.vm.vcpus[0]

    def write_all() -> None:
        for first in range(0, pages, 4096):
            accesses = tuple(("write", gfn) for gfn in range(first, first + 4096))
            call(machine, run_guest(vcpu, accesses, "hlt"))

    return timed(write_all) / pages * 1e6


def map_by_fault(machine: Machine, pages: int) -> float:
    """Take a write fault on each page; return microseconds per page.

    The whole path of the kernel: SRCU, memslot, sequence count, host page, mmu_lock,
    retry check, walk, entry, page given back.
    """
    vm = machine.vm
    vcpu = vm.vcpus[0]
    machine.k.vcpu_load.fn(vcpu)
    page_fault = machine.k.page_fault

    async def fault_some(first: int) -> None:
        for gfn in range(first, first + 4096):
            async with vm.srcu.read():
                await page_fault(vcpu, gfn, "write", "missing")

    def fault_all() -> None:
        for first in range(0, pages, 4096):
            call(machine, fault_some(first))

    return timed(fault_all) / pages * 1e6


def measure(name: str, machine: Machine, pages: int, guest_us: float) -> None:
    """Print what each operation costs per page of one guest."""
    vm = machine.vm
    k, size = vm.k, pages << 12
    fault_us = map_by_fault(machine, pages)
    live = vm.tables.live.values()
    bytes_per_page = (
        sum(sys.getsizeof(t) + sys.getsizeof(t.cells) for t in live) / pages
    )
    slot = vm.memslots[0].slots[0]

    async def under_lock(operation: Any) -> None:
        async with vm.mmu_lock.write():
            await operation
            vm.ledger.owed.clear()

    def locked(operation: Any) -> float:
        return timed(lambda: call(machine, under_lock(operation))) / pages * 1e6

    log_on = Region(0, 1, 0, size, FIRST_HVA)
    protect_us = timed(lambda: call(machine, set_memory_region(vm, log_on)))
    age_us = locked(k.age_gfn(vm, slot, 0, pages))
    zap_us = locked(k.unmap_gfn_range(vm, slot, 0, pages, False))
    print(
        f"{name}, {pages:>9,} pages: fault path {fault_us:5.2f} us/page (at most 10), "
        f"with the guest's accesses and entry {guest_us:5.2f}; "
        f"write-protect {protect_us / pages * 1e6:.4f}, age {age_us:.4f}, "
        f"zap {zap_us:.4f} us/entry (at most 0.05); "
        f"{bytes_per_page:.1f} bytes/page (at most 12)"
    )


def main() -> None:
    """Run the benchmarks that are named, or all."""
    plugins = load()
    for benchmark in (cold, steps, tables):
        if len(sys.argv) == 1 or benchmark.__name__ in sys.argv[1:]:
            benchmark(plugins)


if __name__ == "__main__":
    main()
