"""gfn_to_pfn_cache: a guest page mapped for the kernel's own use.

Models virt/kvm/pfncache.c: the cache itself, its life and its use; generic facts 1.4
and 2.13. As introduced (v5.17), with its own lock (v6.0), with checks of ``active``
(v6.1), and by host address (v6.9), which is as upstream today.
"""

__all__ = [
    "CHANGES",
    "CHOICES",
    "NO_PFN",
    "Gpc",
    "gpc_activate",
    "gpc_check",
    "gpc_deactivate",
    "gpc_write",
    "gpc_write_atomic",
    "put_page",
    "set_valid",
    "state_of",
    "store_mapping",
]

from errno import EAGAIN, EINVAL
from typing import TYPE_CHECKING

from kvmarch.changes import Choice
from kvmarch.kernel.checks import check_cache
from kvmarch.kernel.vm import Vm
from kvmarch.machine.locks import Lock, LockClass
from kvmarch.machine.steps import op
from kvmarch.machine.world import Part

if TYPE_CHECKING:
    from kvmarch.kernel.memslots import Memslot

CHANGES = frozenset(
    {
        "gpc",
        "gpc-refresh-lock",
        "gpc-invalid-while-refreshing",
        "gpc-unpinned",
        "gpc-init-once",
        "gpc-active",
        "gpc-khva-offset",
        "gpc-hva",
        "gpc-retry-in-progress",
        "gpc-retry-active-count",
        "gpc-range-retry",
        "gpc-wait",
        "gpc-needs-invalidation-v2",
        "gpc-needs-invalidation-v3-1",
        "gpc-needs-invalidation-v3-2",
        "gpc-needs-invalidation-v3-2-meant",
        "gpc-needs-invalidation-v3-3",
        "gpc-needs-invalidation-v3-4",
        "gpc-needs-invalidation-always",
        "gpc-october",
        "gpc-release-invalidates",
    }
)
"""Changes without effect where gfn_to_pfn_cache is not built."""

REFRESH_LOCK = LockClass("gpc->refresh_lock", rank=45, sleeps=True)
CACHE_LOCK = LockClass("gpc->lock", rank=74, shared=True)
NO_PFN = -1
"""KVM_PFN_ERR_FAULT."""


class Gpc(Part):
    """struct gfn_to_pfn_cache; addresses in bytes, -1 for none.

    ``khva`` is where the kernel sees the page: the model uses the page's physical
    address plus the offset within it. ``needs_invalidation`` is a proposal's, and
    ``turns`` only watched: how often a refresh has looked for the page, up to a bound.
    """

    variables = (
        "active",
        "valid",
        "needs_invalidation",
        "turns",
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
        self.needs_invalidation = 0
        self.turns = 0
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


# -- small steps -------------------------------------------------------------------


@op(name="gpc state")
def state_of(gpc: Gpc) -> tuple[int, int, int, int]:
    """Return active, valid, uhva and pfn."""
    return gpc.active, gpc.valid, gpc.uhva, gpc.pfn


@op(name="store mapping")
def store_mapping(gpc: Gpc, valid: int, pfn: int, khva: int) -> None:
    """Store what the end of a refresh, or of an activation, has found."""
    gpc.valid, gpc.pfn, gpc.khva = valid, pfn, khva
    gpc.turns = 0
    if valid:
        gpc.vm.world.note("gpc_valid", gpc=gpc.name, pfn=pfn, khva=khva)


@op(name="gpc->valid = value")
def set_valid(gpc: Gpc, valid: int) -> None:
    """Say whether the cache may be used."""
    gpc.valid = valid


@op(name="put page")
def put_page(vm: Vm, pfn: int) -> None:
    """Give a reference back."""
    vm.host.put(pfn)


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


# -- activate ----------------------------------------------------------------------

gpc_inits_locks = Choice(
    "gpc_inits_locks", "whether each activation initialises the cache's locks"
)
gpc_inits_locks.add(False)
gpc_inits_locks.add(True, "gpc")
gpc_inits_locks.add(False, "gpc", "gpc-init-once")

gpc_link = Choice("gpc_link", "whether a cache is listed before it is active")


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


@op(name="is the GPC active?")
def _is_active(gpc: Gpc) -> bool:
    return bool(gpc.active)


@op(name="rwlock_init(gpc->lock)")
def _init_locks(gpc: Gpc) -> None:
    # Simplified: the locks stay as they are; harmless because the loss is recorded,
    # and whoever holds one goes on as if it were still held.
    for lock in (gpc.lock, gpc.refresh_lock):
        holder = lock.writer or next(iter(lock.readers), None)
        if holder is not None:
            gpc.vm.world.violate(
                "locks", f"{lock.name} is initialised while {holder} holds it"
            )


@op(name="reset GPC")
def _reset(gpc: Gpc) -> None:
    """Begin anew, with no lock held: nobody is believed to know the cache."""
    gpc.valid, gpc.pfn, gpc.khva, gpc.uhva = 0, NO_PFN, -1, -1
    gpc.active = 1


@gpc_link.when()
async def _link_as_introduced(gpc: Gpc) -> None:
    """Reset, make active, and only then let the notifier reach it (to v6.0)."""
    active = await _is_active(gpc)
    if active:
        return
    if gpc.vm.k.gpc_inits_locks:
        await _init_locks(gpc)
    await _reset(gpc)
    async with gpc.vm.gpc_lock.write():
        await _link(gpc)


@gpc_link.when("gpc-active")
async def _link_first(gpc: Gpc) -> None:
    """List first, ``active`` second, so that the notifier can reach it (v6.1 on)."""
    active = await _is_active(gpc)
    if active:
        return
    if gpc.vm.k.gpc_inits_locks:
        await _init_locks(gpc)
    async with gpc.vm.gpc_lock.write():
        await _link(gpc)
    async with gpc.lock.write():
        await _set_active(gpc, 1)


gpc_takes_hva = Choice("gpc_takes_hva", "whether a cache may be of a host address")
gpc_takes_hva.add(False)
gpc_takes_hva.add(True, "gpc", "gpc-hva")


async def gpc_activate(gpc: Gpc, gpa: int = -1, uhva: int = -1) -> int:
    """Make a cache usable for a gpa, or from v6.9 for a host address.

    :Kernel: kvm_gpc_activate(), kvm_gfn_to_pfn_cache_init() before v6.1.
    :Locking: refresh_lock throughout, from v6.9.
    :returns: 0 or an errno.
    """
    vm = gpc.vm
    if not vm.k.gpc_exists or (gpa < 0 and not vm.k.gpc_takes_hva):
        return EINVAL
    if vm.k.gpc_takes_hva:
        async with vm.srcu.read(), gpc.refresh_lock.write():
            await vm.k.gpc_link(gpc)
            errno = await vm.k.gpc_refresh_locked(gpc, gpa, uhva)
    else:
        await vm.k.gpc_link(gpc)
        async with vm.srcu.read():
            errno = await vm.k.gpc_refresh(gpc, gpa, uhva)
    return int(errno)


# -- deactivate --------------------------------------------------------------------

gpc_exists = Choice("gpc_exists", "whether the kernel has GPCs")
gpc_exists.add(False)
gpc_exists.add(True, "gpc")

gpc_pins_page = Choice("gpc_pins_page", "whether a cache holds a reference to its page")
gpc_pins_page.add(False)
gpc_pins_page.add(True, "gpc")
gpc_pins_page.add(False, "gpc", "gpc-unpinned")

gpc_give_up = Choice(
    "gpc_give_up", "whether a cache is off the list before it is unusable"
)


@gpc_give_up.when()
async def _unlink_first(gpc: Gpc) -> None:
    """Take it off the list, drop the mapping, clear ``active`` (to v6.0)."""
    vm = gpc.vm
    active = await _is_active(gpc)
    if not active:
        return
    async with vm.gpc_lock.write():
        await _unlink(gpc)
    async with gpc.lock.write():
        _active, _valid, _uhva, pfn = await state_of(gpc)
        await store_mapping(gpc, 0, NO_PFN, -1)
    if vm.k.gpc_pins_page and pfn != NO_PFN:
        await put_page(vm, pfn)
    await _set_active(gpc, 0)


async def _deactivate_locked(gpc: Gpc) -> None:
    vm = gpc.vm
    active = await _is_active(gpc)
    if not active:
        return
    async with gpc.lock.write():
        _active, _valid, _uhva, pfn = await state_of(gpc)
        await _set_active(gpc, 0)
        await store_mapping(gpc, 0, NO_PFN, -1)
    async with vm.gpc_lock.write():
        await _unlink(gpc)
    if vm.k.gpc_pins_page and pfn != NO_PFN:
        await put_page(vm, pfn)


@gpc_give_up.when("gpc-active")
async def _unlink_last(gpc: Gpc) -> None:
    """Make it unusable, and then take it off the list (v6.1 on)."""
    if gpc.vm.k.gpc_takes_hva:
        async with gpc.refresh_lock.write():
            await _deactivate_locked(gpc)
    else:
        await _deactivate_locked(gpc)


async def gpc_deactivate(gpc: Gpc) -> None:
    """Make a cache unusable and take it off the list.

    :Kernel: kvm_gpc_deactivate(), kvm_gfn_to_pfn_cache_destroy() before v6.1;
        inside refresh_lock from v6.9.
    """
    await gpc.vm.k.gpc_give_up(gpc)


# -- use ---------------------------------------------------------------------------


@op(name="write through khva")
def _write(gpc: Gpc) -> None:
    vm = gpc.vm
    if gpc.khva < 0:
        vm.world.violate("warn", f"{gpc.name}: NULL khva is dereferenced")
        return
    pfn = gpc.khva >> vm.page_shift
    vm.host.touch(pfn, f"{gpc.name}")
    check_cache(vm, gpc.name, gpc.uhva, pfn)
    page = vm.host.pages.get(pfn)
    if page is not None:
        page.content = (gpc.name, "written")


@op(name="mark page dirty")
def _mark_dirty(gpc: Gpc) -> None:
    if gpc.memslot is not None and gpc.gpa >= 0:
        gpc.vm.mark_page_dirty(gpc.memslot, gpc.gpa >> gpc.vm.page_shift)


@op(name="does it end in the page?")
def _fits(gpc: Gpc, length: int) -> bool:
    address = gpc.gpa if gpc.gpa >= 0 else gpc.uhva
    page = 1 << gpc.vm.page_shift
    return address % page + length <= page


@op(name="addresses of the GPC")
def _addresses(gpc: Gpc) -> tuple[int, int]:
    return gpc.gpa, gpc.uhva


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
            gpa, uhva = await _addresses(gpc)
            errno = await vm.k.gpc_refresh(gpc, gpa, uhva)
            if errno:
                return int(errno)
            await gpc.lock.take_read()
            usable = await gpc_check(gpc, length)
        await _write(gpc)
        await _mark_dirty(gpc)
        await gpc.lock.drop_read()
    return 0


async def gpc_write_atomic(gpc: Gpc, length: int = 8) -> int:
    """Write through a cache where nobody may sleep, or give up if it must be filled.

    :Kernel: kvm_xen_set_evtchn_fast(), from an interrupt or for another process.
    :returns: 0 or EAGAIN.
    """
    vm = gpc.vm
    errno = EAGAIN
    async with vm.srcu.read(), gpc.lock.read():
        usable = await gpc_check(gpc, length)
        if usable:
            await _write(gpc)
            errno = 0
    return errno


CHOICES: tuple[Choice, ...] = (
    gpc_exists,
    gpc_requires_active,
    gpc_inits_locks,
    gpc_link,
    gpc_takes_hva,
    gpc_pins_page,
    gpc_give_up,
)
