"""gfn_to_pfn_cache: a guest page mapped for the kernel's own use.

Models virt/kvm/pfncache.c; generic facts 1.4 and 2.13. As introduced (v5.17), with
its own lock (v6.0), with checks of ``active`` (v6.1), and by host address (v6.9), which
is as upstream today.
"""

__all__ = ["CHANGES", "CHOICES", "Gpc", "gpc_activate", "gpc_check", "gpc_deactivate"]

from errno import EFAULT, EINVAL

from kvmarch.changes import Choice
from kvmarch.kernel.gup import get_user_page
from kvmarch.kernel.memslots import Memslot, gfn_to_memslot
from kvmarch.kernel.retry import snapshot_mmu_seq
from kvmarch.kernel.vm import Vm
from kvmarch.machine.locks import Lock, LockClass
from kvmarch.machine.steps import op
from kvmarch.machine.world import Part

CHANGES = frozenset(
    {"gpc", "gpc-refresh-lock", "gpc-active", "gpc-khva-offset", "gpc-hva"}
)
"""Changes without effect where gfn_to_pfn_cache is not built."""

REFRESH_LOCK = LockClass("gpc->refresh_lock", rank=45, sleeps=True)
CACHE_LOCK = LockClass("gpc->lock", rank=74, shared=True)
NO_PFN = -1
"""KVM_PFN_ERR_FAULT."""


class Gpc(Part):
    """struct gfn_to_pfn_cache; addresses in bytes, -1 for none.

    ``khva`` is where the kernel sees the page: the model uses the page's physical
    address plus the offset within it.
    """

    variables = (
        "active",
        "valid",
        "gpa",
        "uhva",
        "pfn",
        "khva",
        "generation",
        "memslot",
        "lock",
        "refresh_lock",
    )

    def __init__(self, vm: Vm, name: str = "gpc0") -> None:
        self.vm = vm
        self.name = name
        self.active = 0
        self.valid = 0
        self.gpa = -1
        self.uhva = -1
        self.pfn = NO_PFN
        self.khva = -1
        self.generation = -1
        self.memslot: Memslot | None = None
        self.lock = Lock(vm.world, CACHE_LOCK, f"{name}->lock")
        self.refresh_lock = Lock(vm.world, REFRESH_LOCK, f"{name}->refresh_lock")

    def __repr__(self) -> str:
        return f"Gpc({self.name})"


# -- the notifier's side -----------------------------------------------------------

gpc_invalidate_start = Choice(
    "gpc_invalidate_start", "what invalidate_range_start does to GPCs"
)


@gpc_invalidate_start.when()
async def _no_caches(vm: Vm, start: int, end: int) -> None:
    """Do nothing: there are no GPCs before v5.17."""


@op(name="read gpc_list")
def _caches(vm: Vm) -> tuple[Gpc, ...]:
    return tuple(vm.gpc_list)


@op(name="is the GPC in the range?")
def _is_hit(gpc: Gpc, start: int, end: int) -> bool:
    return bool(gpc.valid and gpc.pfn != NO_PFN and start <= gpc.uhva < end)


@op(name="gpc->valid = false")
def _invalidate(gpc: Gpc, start: int, end: int) -> None:
    if _is_hit.fn(gpc, start, end):
        gpc.valid = 0
        gpc.vm.world.note("gpc_invalidated", gpc=gpc.name)


@gpc_invalidate_start.when("gpc")
async def _write_lock_each(vm: Vm, start: int, end: int) -> None:
    """Take each cache's lock for write (v5.17 to v6.8)."""
    if not vm.gpc_list:
        return
    async with vm.gpc_lock.write():
        caches = await _caches(vm)
        for gpc in caches:
            async with gpc.lock.write():
                await _invalidate(gpc, start, end)


@gpc_invalidate_start.when("gpc", "gpc-hva")
async def _read_lock_first(vm: Vm, start: int, end: int) -> None:
    """Look with the lock held for read, and test again for write (v6.9 on)."""
    if not vm.gpc_list:
        return
    async with vm.gpc_lock.write():
        caches = await _caches(vm)
        for gpc in caches:
            async with gpc.lock.read():
                hit = await _is_hit(gpc, start, end)
            if hit:
                async with gpc.lock.write():
                    await _invalidate(gpc, start, end)


# -- check -------------------------------------------------------------------------

gpc_requires_active = Choice(
    "gpc_requires_active", "whether an inactive cache is refused"
)
gpc_requires_active.add(False)
gpc_requires_active.add(True, "gpc-active")


@op(name="kvm_gpc_check")
def gpc_check(gpc: Gpc, length: int) -> bool:
    """Return whether the cache may be used for ``length`` bytes.

    :Kernel: kvm_gpc_check(), kvm_gfn_to_pfn_cache_check() before v6.1.
    :Locking: gpc->lock, kvm->srcu read.
    """
    vm = gpc.vm
    if vm.k.gpc_requires_active and not gpc.active:
        return False
    if gpc.gpa >= 0:
        if gpc.generation != vm.k.generation_now.fn(vm, 0):
            return False
        offset = gpc.gpa
    else:
        offset = gpc.uhva
    page = 1 << vm.page_shift
    return gpc.uhva >= 0 and offset % page + length <= page and bool(gpc.valid)


# -- refresh -----------------------------------------------------------------------

gpc_refresh = Choice("gpc_refresh", "how a cache is filled again")
gpc_fixes_offset = Choice(
    "gpc_fixes_offset", "whether a move within the page moves the mapping too"
)
gpc_fixes_offset.add(False)
gpc_fixes_offset.add(True, "gpc-khva-offset")


@op(name="look up the cache's address")
def _look_up(gpc: Gpc, gpa: int) -> int:
    """Find memslot and uhva of a gpa if they may have changed; 0 or an errno."""
    vm = gpc.vm
    if gpa < 0:
        gpc.memslot = None
        return 0
    generation = vm.k.generation_now.fn(vm, 0)
    if gpc.gpa == gpa and gpc.generation == generation and gpc.uhva >= 0:
        return 0
    gfn = gpa >> vm.page_shift
    slot = gfn_to_memslot(vm, gfn)
    gpc.gpa, gpc.generation = gpa, generation
    gpc.memslot = slot
    if slot is None or slot.invalid:
        gpc.uhva = -1
        return EFAULT
    gpc.uhva = slot.hva(gfn, vm.page_shift) + gpa % (1 << vm.page_shift)
    return 0


@op(name="gpc state")
def _state(gpc: Gpc) -> tuple[int, int, int, int]:
    return gpc.active, gpc.valid, gpc.uhva, gpc.pfn


@op(name="store mapping")
def _store(gpc: Gpc, valid: int, pfn: int, khva: int) -> None:
    gpc.valid, gpc.pfn, gpc.khva = valid, pfn, khva
    if valid:
        gpc.vm.world.note("gpc_valid", gpc=gpc.name, pfn=pfn, khva=khva)


@op(name="gpc->valid = value")
def _set_valid(gpc: Gpc, valid: int) -> None:
    gpc.valid = valid


@op(name="invalidation since the snapshot?")
def _must_retry(vm: Vm, seq: int) -> bool:
    """Test the count of active invalidations, and then the sequence.

    :Kernel: mmu_notifier_retry_cache(), v6.0 on. in_progress would be too late: it
        rises only after caches were invalidated.
    """
    return vm.mn_active_invalidate_count > 0 or vm.mmu_invalidate_seq != seq


@op(name="put page")
def _put(vm: Vm, pfn: int) -> None:
    vm.host.put(pfn)


def _khva(vm: Vm, pfn: int, address: int) -> int:
    return (pfn << vm.page_shift) + address % (1 << vm.page_shift)


async def _to_pfn_retry(gpc: Gpc, uhva: int) -> int:
    """Resolve the page with gpc->lock dropped, until no invalidation raced.

    :Kernel: hva_to_pfn_retry(), v6.0 on.
    :Locking: refresh_lock, gpc->lock for write; the latter is dropped inside.
    """
    vm = gpc.vm
    await _set_valid(gpc, 0)
    pfn = NO_PFN
    retry = True
    while retry:
        seq = await snapshot_mmu_seq(vm)
        await gpc.lock.drop_write()
        if pfn != NO_PFN:
            await _put(vm, pfn)
        pfn = await get_user_page(vm.mm, uhva >> vm.page_shift, True)
        await gpc.lock.take_write()
        if pfn < 0:
            return EFAULT
        retry = await _must_retry(vm, seq)
    await _store(gpc, 1, pfn, _khva(vm, pfn, uhva))
    # The cache holds no reference: the notifier keeps it honest.
    await _put(vm, pfn)
    return 0


@gpc_refresh.when("gpc", "gpc-refresh-lock")
async def _refresh(gpc: Gpc, gpa: int, uhva: int) -> int:
    """Refresh one cache at a time (v6.0 on).

    :Kernel: __kvm_gpc_refresh().
    """
    vm = gpc.vm
    async with gpc.refresh_lock.write():
        await gpc.lock.take_write()
        active, _valid, old_uhva, _pfn = await _state(gpc)
        if vm.k.gpc_requires_active and not active:
            await gpc.lock.drop_write()
            return EINVAL
        if gpa < 0:
            await _set_uhva(gpc, uhva)
        errno = await _look_up(gpc, gpa)
        _active, valid, uhva, pfn = await _state(gpc)
        moved = old_uhva >> vm.page_shift != uhva >> vm.page_shift
        if not errno:
            if not valid or moved:
                errno = await _to_pfn_retry(gpc, uhva)
            elif vm.k.gpc_fixes_offset:
                await _store(gpc, 1, pfn, _khva(vm, pfn, uhva))
        if errno:
            await _store(gpc, 0, NO_PFN, -1)
        await gpc.lock.drop_write()
    return errno


@op(name="gpc->uhva = value")
def _set_uhva(gpc: Gpc, uhva: int) -> None:
    gpc.gpa, gpc.uhva, gpc.memslot = -1, uhva, None


@gpc_refresh.when("gpc")
async def _refresh_as_introduced(gpc: Gpc, gpa: int, uhva: int) -> int:
    """Leave a placeholder that looks valid while the page is resolved (v5.17 to v5.19).

    :Kernel: kvm_gfn_to_pfn_cache_refresh() at 982ed0de4753. The cache keeps a page
        reference; the retry check runs under mmu_lock, before the page is stored.
    """
    vm = gpc.vm
    await gpc.lock.take_write()
    _active, valid, old_uhva, old_pfn = await _state(gpc)
    errno = await _look_up(gpc, gpa)
    _active, _valid, uhva, _pfn = await _state(gpc)
    moved = old_uhva >> vm.page_shift != uhva >> vm.page_shift
    if errno:
        await _store(gpc, 0, NO_PFN, -1)
        await gpc.lock.drop_write()
    elif valid and not moved:
        await gpc.lock.drop_write()
        return 0
    else:
        # The placeholder: valid, but with no page behind it.
        await _store(gpc, 1, NO_PFN, -1)
        await gpc.lock.drop_write()
        pfn = await _resolve_as_introduced(vm, uhva)
        await gpc.lock.take_write()
        if pfn < 0:
            errno = EFAULT
            await _store(gpc, 0, NO_PFN, -1)
        else:
            await _fill_placeholder(gpc, pfn, _khva(vm, pfn, uhva))
        await gpc.lock.drop_write()
    if old_pfn != NO_PFN:
        await _put(vm, old_pfn)
    return errno


async def _resolve_as_introduced(vm: Vm, uhva: int) -> int:
    retry = True
    pfn = NO_PFN
    while retry:
        seq = await snapshot_mmu_seq(vm)
        if pfn != NO_PFN:
            await _put(vm, pfn)
        pfn = await get_user_page(vm.mm, uhva >> vm.page_shift, True)
        if pfn < 0:
            return NO_PFN
        shared = vm.mmu_lock.kind.shared
        async with vm.mmu_lock.read() if shared else vm.mmu_lock.write():
            retry = await vm.k.gpc_retry(vm, seq, uhva)
    return pfn


gpc_pins_page = Choice("gpc_pins_page", "whether a cache holds a reference to its page")
gpc_pins_page.add(False)
gpc_pins_page.add(True, "gpc")
gpc_pins_page.add(False, "gpc", "gpc-refresh-lock")

gpc_retry = Choice("gpc_retry", "the retry check of a GPC as it was introduced")


@gpc_retry.when()
def _retry_hva(vm: Vm, seq: int, uhva: int) -> bool:
    """Test in_progress and its range, and the sequence (mmu_notifier_retry_hva())."""
    if (
        vm.mmu_invalidate_in_progress
        and vm.mmu_invalidate_range_start <= uhva < vm.mmu_invalidate_range_end
    ):
        return True
    return vm.mmu_invalidate_seq != seq


@op(name="fill placeholder")
def _fill_placeholder(gpc: Gpc, pfn: int, khva: int) -> None:
    gpc.pfn, gpc.khva = pfn, khva
    gpc.vm.world.note("gpc_valid", gpc=gpc.name, pfn=pfn, khva=khva)


@gpc_refresh.when()
async def _refresh_absent(gpc: Gpc, gpa: int, uhva: int) -> int:
    """Refuse: the kernel has no GPC (before v5.17)."""
    return EINVAL


# -- activate and deactivate -------------------------------------------------------


@op(name="list_add(gpc)")
def _link(gpc: Gpc) -> None:
    if gpc not in gpc.vm.gpc_list:
        gpc.vm.gpc_list.append(gpc)


@op(name="list_del(gpc)")
def _unlink(gpc: Gpc) -> None:
    if gpc in gpc.vm.gpc_list:
        gpc.vm.gpc_list.remove(gpc)


@op(name="gpc->active = value")
def _set_active(gpc: Gpc, active: int) -> None:
    gpc.active = active


gpc_takes_hva = Choice("gpc_takes_hva", "whether a cache may be of a host address")
gpc_takes_hva.add(False)
gpc_takes_hva.add(True, "gpc", "gpc-hva")


async def gpc_activate(gpc: Gpc, gpa: int = -1, uhva: int = -1) -> int:
    """Make a cache usable for a gpa, or from v6.9 for a host address.

    List first, ``active`` second, so that the notifier can reach it.

    :Kernel: kvm_gpc_activate(), kvm_gfn_to_pfn_cache_init() before v6.1.
    :returns: 0 or an errno.
    """
    vm = gpc.vm
    if gpa < 0 and not vm.k.gpc_takes_hva:
        return EINVAL
    async with vm.gpc_lock.write():
        await _link(gpc)
    async with gpc.lock.write():
        await _set_active(gpc, 1)
    async with vm.srcu.read():
        errno = await vm.k.gpc_refresh(gpc, gpa, uhva)
    return int(errno)


async def gpc_deactivate(gpc: Gpc) -> None:
    """Make a cache unusable and take it off the list.

    :Kernel: kvm_gpc_deactivate().
    """
    vm = gpc.vm
    async with gpc.lock.write():
        _active, _valid, _uhva, pfn = await _state(gpc)
        await _set_active(gpc, 0)
        await _store(gpc, 0, NO_PFN, -1)
    async with vm.gpc_lock.write():
        await _unlink(gpc)
    if vm.k.gpc_pins_page and pfn != NO_PFN:
        await _put(vm, pfn)


@op(name="write through khva")
def _write(gpc: Gpc) -> None:
    vm = gpc.vm
    if gpc.khva < 0:
        vm.world.violate("warn", f"{gpc.name}: NULL khva is dereferenced")
        return
    pfn = gpc.khva >> vm.page_shift
    vm.host.touch(pfn, f"{gpc.name}")
    page = vm.host.pages.get(pfn)
    if page is not None:
        page.content = (gpc.name, vm.world.steps)


@op(name="mark page dirty")
def _mark_dirty(gpc: Gpc) -> None:
    if gpc.memslot is not None and gpc.gpa >= 0:
        gpc.vm.mark_page_dirty(gpc.memslot, gpc.gpa >> gpc.vm.page_shift)


@op(name="does it end in the page?")
def _fits(gpc: Gpc, length: int) -> bool:
    address = gpc.gpa if gpc.gpa >= 0 else gpc.uhva
    page = 1 << gpc.vm.page_shift
    return address % page + length <= page


async def gpc_write(gpc: Gpc, length: int = 8) -> int:
    """Write through a cache, refreshing it first if it must be.

    :param length: bytes; EINVAL if they do not end in the page.
    :returns: 0 or an errno.
    """
    vm = gpc.vm
    async with vm.srcu.read():
        await gpc.lock.take_read()
        usable = await gpc_check(gpc, length)
        while not usable:
            await gpc.lock.drop_read()
            fits = await _fits(gpc, length)
            if not fits:
                return EINVAL
            errno = await vm.k.gpc_refresh(gpc, gpc.gpa, gpc.uhva)
            if errno:
                return int(errno)
            await gpc.lock.take_read()
            usable = await gpc_check(gpc, length)
        await _write(gpc)
        await _mark_dirty(gpc)
        await gpc.lock.drop_read()
    return 0


CHOICES: tuple[Choice, ...] = (
    gpc_invalidate_start,
    gpc_requires_active,
    gpc_refresh,
    gpc_fixes_offset,
    gpc_pins_page,
    gpc_retry,
    gpc_takes_hva,
)
