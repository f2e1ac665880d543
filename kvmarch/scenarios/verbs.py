"""The verbs of scenario steps: what a task can do.

Each verb is a row: its parameters, what it means, and the kernel path that it runs.
Page numbers of a memory count from its start; gfns and pages are of the machine's
page size.
"""

__all__ = [
    "LEAVE_GPA",
    "SEQUENCE",
    "VERBS",
    "Context",
    "Verb",
    "check_line",
    "check_own_verbs",
    "find_verb",
    "make_gpcs",
    "parse",
    "values",
]

from collections.abc import Mapping
from typing import Any

from kvmarch.kernel import huge_memory, ksm, mmap, reclaim
from kvmarch.kernel import mremap as moving
from kvmarch.kernel.boot import destroy_vm
from kvmarch.kernel.dirty_log import clear_dirty_log, get_dirty_log
from kvmarch.kernel.memory_region import Region, pass_updates, set_memory_region
from kvmarch.kernel.mmu_notifier import (
    Subscription,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
    mmu_notifier_register,
)
from kvmarch.kernel.vcpu import guest_access, run_guest
from kvmarch.kernel.vm import Vm
from kvmarch.machine.environment import turn
from kvmarch.machine.host import PFN_SHIFT, PRESENT
from kvmarch.machine.steps import Path, op
from kvmarch.scenarios.gpc_verbs import SEQUENCE, make_gpcs
from kvmarch.scenarios.survey import survey as survey_of
from kvmarch.scenarios.verb import (
    VERBS,
    Context,
    Streams,
    Verb,
    check_line,
    check_own_verbs,
    find_verb,
    parse,
    values,
    verb,
)

LEAVE_GPA = 0x1000_0000
"""Where a guest stores to leave, on architectures that leave by MMIO."""


# -- the guest ---------------------------------------------------------------------


def _access(c: Context, args: Mapping[str, Any], access: str) -> Path[Any]:
    vcpu = c.vm(args).vcpus[args.get("vcpu", 0)]
    gfn = c.gfn(args)
    if args.get("stay") == "yes":
        return guest_access(vcpu, gfn, access)
    accesses = [(access, gfn)]
    if c.code >= 0:
        accesses.insert(0, ("exec", c.code))
    if c.leave == "mmio":
        accesses.append(("write", LEAVE_GPA >> c.page_shift))
    return run_guest(vcpu, tuple(accesses), "hlt" if c.leave == "hlt" else "")


_VM = {"vm": "?int"}
"""Which VM, if there are several: from 0 on."""
_GUEST = {
    "gfn": "?int",
    "gpa": "?int",
    "vcpu": "?int",
    "stay": "?word:yes|no",
    **_VM,
}


@verb("The guest loads from a page, in a KVM_RUN of its own.", **_GUEST)
def read(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    return _access(c, args, "read")


@verb("The guest stores to a page, in a KVM_RUN of its own.", **_GUEST)
def write(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    return _access(c, args, "write")


@verb("The guest fetches code from a page, in a KVM_RUN of its own.", **_GUEST)
def exec_(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    return _access(c, args, "exec")


# -- memslots ----------------------------------------------------------------------


@verb(
    "KVM_SET_USER_MEMORY_REGION: create, move or reflag a slot. The memory is that of "
    "a name, from page on; offset moves hva by bytes.",
    id="int",
    memory="name",
    gfn="?int",
    gpa="?int",
    page="?int",
    pages="?int",
    offset="?int",
    flags="?flags",
    as_id="?int",
    **_VM,
)
def slot(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    start, end = c.pages({k: v for k, v in args.items() if k != "pages"})
    shift = c.page_shift
    size = args["pages"] << shift if "pages" in args else end - start
    gpa = args["gpa"] if "gpa" in args else args.get("gfn", 0) << shift
    region = Region(
        args.get("as_id", 0) << 16 | args["id"],
        args.get("flags", 0),
        gpa,
        size,
        start + args.get("offset", 0),
    )
    return set_memory_region(c.vm(args), region)


@verb("Delete a memslot (size 0).", id="int", as_id="?int", **_VM)
def slot_delete(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    number = args.get("as_id", 0) << 16 | args["id"]
    return set_memory_region(c.vm(args), Region(number, 0, 0, 0, 0))


@verb(
    "Let memslot updates be over that leave the slots as they were. For setup: it is "
    "one update after the other, without the steps of each.",
    count="int",
    as_id="?int",
    **_VM,
)
def updates(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    return pass_updates(c.vm(args), args.get("as_id", 0), args["count"])


@verb(
    "KVM_GET_DIRTY_LOG; the result is errno and bitmap.",
    id="int",
    as_id="?int",
    **_VM,
)
def dirty_get(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    return get_dirty_log(c.vm(args), args.get("as_id", 0) << 16 | args["id"])


@verb(
    "KVM_CLEAR_DIRTY_LOG of pages from a multiple of 64 on.",
    id="int",
    first="int",
    pages="int",
    bits="int",
    **_VM,
)
def dirty_clear(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    return clear_dirty_log(
        c.vm(args), args["id"], args["first"], args["pages"], args["bits"]
    )


@verb(
    "Turn KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 on; nothing happens where an architecture "
    "has none, or none with bitmaps that start with every bit set if that is asked.",
    initially_set="?word:yes|no",
    **_VM,
)
async def manual_protect(c: Context, args: Mapping[str, Any]) -> None:
    await _set_manual(c.vm(args), args.get("initially_set") == "yes")


@op(name="enable manual protect")
def _set_manual(vm: Vm, initially_set: bool) -> None:
    if vm.k.generic_dirty_log and (vm.k.initially_set_log or not initially_set):
        vm.manual_protect = True
        vm.initially_set = initially_set


# -- host memory -------------------------------------------------------------------

_PAGES = {"memory": "name", "page": "?int", "pages": "?int"}


@verb("The host writes a value to pages.", value="?int", **_PAGES)
def touch(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    start, end = c.pages(args)
    pages = range(start >> c.page_shift, end >> c.page_shift)
    # What no scenario states is different for each page.
    contents = tuple(args.get("value", ("touched", page)) for page in pages)
    return mmap.touch_pages(c.machine.mm, start, contents)


@verb(
    "MADV_MERGEABLE for pages; then KSM runs until all that is mergeable is merged, "
    "be it by this step, by one before or by the memory's row, and in children, too.",
    **_PAGES,
)
async def ksm_merge(c: Context, args: Mapping[str, Any]) -> int:
    await ksm.madvise_mergeable(c.machine.mm, *c.pages(args))
    return await ksm.ksm_scan(c.machine.mm)


@verb("MADV_UNMERGEABLE: pages that KSM has merged are given back.", **_PAGES)
def ksm_unmerge(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    return ksm.madvise_unmergeable(c.machine.mm, *c.pages(args))


@verb("MADV_DONTNEED.", **_PAGES)
def dontneed(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    return mmap.madvise_dontneed(c.machine.mm, *c.pages(args))


@verb("mprotect() to read-only or to read and write.", prot="word:r|rw", **_PAGES)
def mprotect(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    return mmap.mprotect(c.machine.mm, *c.pages(args), write=args["prot"] == "rw")


@verb(
    "Invalidate pages again and again, until stream_end, and change nothing.", **_PAGES
)
async def stream(c: Context, args: Mapping[str, Any]) -> None:
    start, end = c.pages(args)
    mm = c.machine.mm
    going = await _is_streaming(c.streams)
    while going:
        await mmu_notifier_invalidate_range_start(mm, start, end)
        await mmu_notifier_invalidate_range_end(mm, start, end)
        going = await _is_streaming(c.streams)


@verb("Let every stream end.")
async def stream_end(c: Context, args: Mapping[str, Any]) -> None:
    await _end_streams(c.streams)


@op(name="is the stream to go on?")
def _is_streaming(streams: Streams) -> bool:
    return bool(streams.going)


@op(name="end streams")
def _end_streams(streams: Streams) -> None:
    streams.going = 0


@verb(
    "The environment turns: reclaim would take the next page; the host is short of "
    "memory; the kernel gets none for page tables; or there is plenty.",
    turn="word:next|short|no_tables|plenty",
)
async def environment(c: Context, args: Mapping[str, Any]) -> None:
    await turn(c.machine.host.environment, args["turn"])


@verb("Swap out whichever of some pages the environment has chosen.", **_PAGES)
def reclaim_any(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    start, end = c.pages(args)
    return reclaim.reclaim_any(c.machine.mm, start, end - start >> c.page_shift)


@verb("munmap().", **_PAGES)
def munmap(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    return mmap.munmap(c.machine.mm, *c.pages(args))


@verb(
    "mremap() to the place of another memory, whose mapping is removed; the result is "
    "errno.",
    to="name",
    **_PAGES,
)
async def mremap(c: Context, args: Mapping[str, Any]) -> int:
    start, end = c.pages(args)
    there, size = c.memory[args["to"]]
    await mmap.munmap(c.machine.mm, there, there + size)
    return await moving.mremap(c.machine.mm, start, end, there)


@verb("fork(): share all memory copy-on-write with a child.")
async def fork(c: Context, args: Mapping[str, Any]) -> None:
    await mmap.fork(c.machine.mm)


@verb("The OOM reaper takes pages with a non-blocking start.", **_PAGES)
def oom_reap(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    return mmap.oom_reap(c.machine.mm, *c.pages(args))


@verb("Another driver watches the memory, and refuses every non-blocking start.")
def driver(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    return mmu_notifier_register(c.machine.mm, Subscription("driver", refuses=True))


_HOW = "word:clear_flush_young|clear_young|test_young"
_PAGE = {"memory": "name", "page": "int"}


@verb("Ask whether pages were used.", how=_HOW, **_PAGES)
def age(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    return reclaim.age(c.machine.mm, *c.pages(args), args["how"])


@verb("Swap a page out; or, if asked, an idle one only.", idle=f"?{_HOW}", **_PAGE)
def swap_out(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    mm, hva = c.machine.mm, c.pages(args)[0]
    if "idle" in args:
        return reclaim.reclaim_idle(mm, hva, args["idle"])
    return reclaim.reclaim(mm, hva)


@verb("Migrate a page to another frame.", memory="name", page="int")
def migrate(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    return reclaim.migrate(c.machine.mm, c.pages(args)[0])


@verb("khugepaged collapses the pages around one.", memory="name", page="int")
def collapse(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    return reclaim.collapse(c.machine.mm, c.pages(args)[0])


@verb("The host splits the huge mapping around a page.", memory="name", page="int")
def split_huge(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    return huge_memory.split_huge(c.machine.mm, c.pages(args)[0])


# -- ends --------------------------------------------------------------------------


@verb("The process exits: its memory goes, ->release first.")
def exit_mm(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    return mmap.exit_mmap(c.machine.mm)


@verb("The last file descriptor of the VM is closed.", **_VM)
def vm_destroy(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    vm = c.vm(args)
    return destroy_vm(vm, c.machine.subscriptions[vm.name])


# -- marks -------------------------------------------------------------------------


@verb("Name what follows.", name="name")
async def mark(c: Context, args: Mapping[str, Any]) -> None:
    await _note_mark(c, args["name"])


@op(name="mark")
def _note_mark(c: Context, name: str) -> None:
    c.machine.world.note("mark", name=name)


LOOKED_AT = 4
"""Entries that a look keeps, as the recordings do."""


@verb(
    "Look at four entries from a gfn on, and at the first pages of a memory.",
    name="name",
    memory="name",
    gfn="?int",
    gpa="?int",
)
async def look(c: Context, args: Mapping[str, Any]) -> None:
    await _look(c, args["name"], c.gfn(args), c.memory[args["memory"]][0])


@op(name="look")
def _look(c: Context, name: str, first: int, hva: int) -> None:
    """Record four host pages from an hva on, and the entry where the first gfn is.

    The entries are neighbours in the table that holds the lowest entry of the
    first gfn, as somebody reads them who looks at the table in memory.
    """
    machine = c.machine
    vm = machine.vm
    vpn = hva >> c.page_shift
    ptes = [machine.mm.pte(page) for page in range(vpn, vpn + LOOKED_AT)]
    pages = [pte >> PFN_SHIFT if pte & PRESENT else 0 for pte in ptes]
    _entry, level = vm.k.entry.fn(vm, first)
    where = vm.k.leaf_table.fn(vm, first, level)
    entries: tuple[int, ...] = ()
    pa = 0
    if where is not None:
        pa, index = where
        table = vm.tables.live.get(pa)
        if table is not None:
            stop = min(index + LOOKED_AT, table.size)
            entries = tuple(table.get(i) for i in range(index, stop))
    machine.world.note(
        "look",
        name=name,
        gfn=first,
        pages=tuple(pages),
        level=level,
        table=pa,
        entries=entries,
    )


@verb(
    "Look at every entry of every VM's tables, and at every page of every memory.",
    name="name",
    also="?name",
)
async def survey(c: Context, args: Mapping[str, Any]) -> None:
    more = (int(gfn, 16) for gfn in args.get("also", "").split(",") if gfn)
    await _survey(c, args["name"], tuple(more))


@op(name="survey")
def _survey(c: Context, name: str, also: tuple[int, ...]) -> None:
    mm = c.machine.mm
    frames = {}
    for memory, (start, size) in c.memory.items():
        ptes = [
            mm.pte(vpn)
            for vpn in range(start >> c.page_shift, start + size >> c.page_shift)
        ]
        frames[memory] = tuple(p >> PFN_SHIFT if p & PRESENT else 0 for p in ptes)
    # A VM that has been destroyed has no tables.
    trees = tuple(survey_of(vm, also) if vm.users_count else () for vm in c.machine.vms)
    c.machine.world.note("survey", name=name, trees=trees, frames=frames)
