"""struct kvm and struct kvm_vcpu: variables, locks and wiring.

Models include/linux/kvm_host.h; generic facts 1.2 to 1.5.
"""

__all__ = ["IN_GUEST", "OUTSIDE", "READING", "Vcpu", "Vm"]

from collections import Counter
from collections.abc import Mapping
from typing import Any

from kvmarch.changes import Kernel
from kvmarch.format.table import TablePool
from kvmarch.kernel.memslots import Memslot, Memslots
from kvmarch.machine.host import HostMemory, Mm
from kvmarch.machine.locks import Lock, LockClass, Rcu, Srcu
from kvmarch.machine.tlb import Ledger, Tlb
from kvmarch.machine.world import Part, World

KVM_LOCK = LockClass("kvm->lock", rank=10, sleeps=True, bars_srcu=True)
VCPU_MUTEX = LockClass("vcpu->mutex", rank=20, sleeps=True, bars_srcu=True)
SLOTS_LOCK = LockClass("slots_lock", rank=30, sleeps=True, bars_srcu=True)
SLOTS_ARCH_LOCK = LockClass("slots_arch_lock", rank=40, sleeps=True)
MN_INVALIDATE_LOCK = LockClass("mn_invalidate_lock", rank=70)
GPC_LOCK = LockClass("gpc_lock", rank=72)
MMU_SPINLOCK = LockClass("mmu_lock", rank=80)
MMU_RWLOCK = LockClass("mmu_lock", rank=80, shared=True)

TABLES, TABLES_SHIFT = 1 << 28, 36
"""Where the tables of the first VM lie, in bytes, and how far from there, as a power of
two, those of the next one."""
OUTSIDE, IN_GUEST, READING = "outside", "in_guest", "reading"
"""vcpu->mode: OUTSIDE_GUEST_MODE, IN_GUEST_MODE, READING_SHADOW_PAGE_TABLES."""


class Vm(Part):
    """One VM.

    :param k: the kernel, assembled.
    :param options: the machine's options, complete.
    :param number: of the VM in its process.
    :param dense: keep page tables as arrays, for guests of many pages.
    """

    variables = (
        "mmu_invalidate_seq",
        "mmu_invalidate_in_progress",
        "mmu_invalidate_range_start",
        "mmu_invalidate_range_end",
        "mn_active_invalidate_count",
        "mmu_gpc_invalidate_range_start",
        "mmu_gpc_invalidate_range_end",
        "memslots",
        "dirty_bitmaps",
        "updating",
        "unreturned",
        "logging",
        "next_key",
        "users_count",
        "lock",
        "slots_lock",
        "slots_arch_lock",
        "mn_invalidate_lock",
        "gpc_lock",
        "mmu_lock",
        "srcu",
        "irq_srcu",
        "rcu",
        "ledger",
        "tables",
        "arch",
        "vcpus",
        "gpc_list",
    )

    def __init__(
        self,
        world: World,
        k: Kernel,
        mm: Mm,
        options: Mapping[str, Any],
        *,
        number: int = 0,
        address_spaces: int = 1,
        dense: bool = False,
    ) -> None:
        self.world = world
        self.k = k
        self.mm = mm
        self.host: HostMemory = mm.host
        self.options = dict(options)
        self.number = number
        self.name = f"vm{number}" if number else "vm"
        self.page_shift = mm.page_shift
        self.mmu_invalidate_seq = 0
        self.mmu_invalidate_in_progress = 0
        self.mmu_invalidate_range_start = -1
        self.mmu_invalidate_range_end = -1
        self.mn_active_invalidate_count = 0
        self.mmu_gpc_invalidate_range_start = -1
        self.mmu_gpc_invalidate_range_end = -1
        """Hull of the active invalidations, in the proposals of 2024 only."""
        self.seq_modulus = 0
        """Where the sequence count starts anew; 0 for never, as in the kernel."""
        self.users_count = 1
        self.manual_protect = False
        """KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 is on: only CLEAR protects."""
        self.initially_set = False
        """KVM_DIRTY_LOG_INITIALLY_SET: a new bitmap starts with every bit set."""
        self.memslots: list[Memslots] = [
            Memslots(generation=k.first_generation.fn(as_id))
            for as_id in range(address_spaces)
        ]
        self.dirty_bitmaps: dict[int, bytearray] = {}
        self.updating: set[int] = set()
        """Address spaces whose new set is published and not final yet."""
        self.unreturned: set[Memslot] = set()
        """Slots whose ioctl has not returned yet: for checks only."""
        self.logging: dict[int, set[int]] = {}
        """By bitmap, the pages written and not reported yet: for checks only."""
        self.next_key = 1
        self.ledger = Ledger(world)
        self.lock = self._lock(KVM_LOCK)
        self.slots_lock = self._lock(SLOTS_LOCK)
        self.slots_arch_lock = self._lock(SLOTS_ARCH_LOCK)
        self.mn_invalidate_lock = self._lock(MN_INVALIDATE_LOCK)
        self.gpc_lock = self._lock(GPC_LOCK)
        kind = MMU_RWLOCK if k.mmu_lock_kind == "rwlock" else MMU_SPINLOCK
        self.mmu_lock = self._lock(kind, ledger=self.ledger)
        self.srcu = Srcu(world, self.own("kvm->srcu"), guards_memslots=True)
        self.irq_srcu = Srcu(world, self.own("kvm->irq_srcu"))
        self.rcu = Rcu(world, self.own("rcu"))
        self.tables = TablePool(
            dense=dense,
            base=TABLES + (number << TABLES_SHIFT),
            misuse=lambda why: world.violate("table-memory", why),
        )
        self.vcpus: list[Vcpu] = []
        self.gpc_list: list[Any] = []
        self.arch: Any = k.vm_create.fn(self)

    @property
    def out_of_tables(self) -> bool:
        """Return whether an allocation of a page for tables would fail now.

        Asked where the kernel allocates, by the architecture: a cache that is topped
        up while it has what is wanted allocates nothing.
        """
        return bool(self.host.environment.no_tables)

    def _lock(self, kind: LockClass, ledger: Ledger | None = None) -> Lock:
        return Lock(self.world, kind, self.own(kind.name), ledger)

    def own(self, name: str) -> str:
        """Return the name of a part, with that of the VM unless it is the first one."""
        return f"{self.name} {name}" if self.number else name

    def __repr__(self) -> str:
        return f"Vm({self.name})"

    def new_key(self) -> int:
        """Return a number that nothing of this VM has had."""
        self.next_key += 1
        return self.next_key - 1

    def mark_page_dirty(self, slot: Memslot, gfn: int) -> None:
        """Set a page's bit in the slot's dirty bitmap, if the slot has one.

        :Kernel: mark_page_dirty_in_slot().
        """
        bitmap = self.dirty_bitmaps.get(slot.bitmap)
        if bitmap is not None:
            offset = gfn - slot.base_gfn
            bitmap[offset >> 3] |= 1 << (offset & 7)

    def warn(self, condition: bool, sentence: str) -> bool:
        """Record that a WARN_ON of the modelled code fires; return the condition."""
        if condition:
            self.world.violate("warn", sentence)
        return condition


class Vcpu(Part):
    """One vCPU, on a CPU of its own.

    ``exits`` counts, by reason, how often the guest was left; ``requests`` is what
    other tasks ask of it before it enters the guest again.
    """

    variables = (
        "mode",
        "requests",
        "tlb",
        "mmio_gfn",
        "mmio_generation",
        "mutex",
        "arch",
    )

    def __init__(self, vm: Vm, number: int) -> None:
        self.vm = vm
        self.k = vm.k
        self.number = number
        # Of a process's first VM, which is the only one as a rule, vCPUs and locks have
        # short names.
        self.name = vm.own(f"vcpu{number}")
        self.as_id = 0
        self.mutex = Lock(vm.world, VCPU_MUTEX, f"{self.name}->mutex")
        self.mode = OUTSIDE
        self.requests: set[str] = set()
        self.tlb = Tlb()
        self.exits: Counter[str] = Counter()
        self.mmio_gfn = -1
        self.mmio_generation = -1
        vm.vcpus.append(self)
        self.arch: Any = vm.k.vcpu_create.fn(self)

    def __repr__(self) -> str:
        return f"Vcpu({self.number})"
