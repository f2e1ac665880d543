"""The HPT of a Book3S HV hash guest, its reverse map, and how hardware looks it up.

:Kernel: arch/powerpc/kvm/book3s_64_mmu_hv.c and book3s_hv_rm_mmu.c, v3.16 on; fact
    sheet ppc, 4.1 to 4.6. Values of V and R are in the old layout, as in the kernel's
    functions.

Simplified: the guest maps all of its memory one to one, in 1T segments, by HPTEs of the
host's page size, which it inserts when it needs them. So no HPTE is larger than a host
page. The HPT is neither reset nor resized.
"""

__all__ = [
    "GUEST_VSID",
    "Hash",
    "HashVcpu",
    "chain_next",
    "destroy_vm",
    "entry",
    "find_hpte",
    "get_rmap",
    "gfn_of",
    "guest_hpte",
    "hpte_unlocked",
    "leaf_table",
    "link_hpte",
    "lock_hpte",
    "lock_rmap_of",
    "make_layout",
    "rmap_offset",
    "set_rmap",
    "tlb_tag",
    "tlbie_hpte",
    "translate",
    "try_lock_hpte",
    "unlink_hpte",
    "unlock_hpte",
    "unlock_rmap_of",
    "vcpu_create",
    "vm_create",
]

from collections.abc import Mapping
from typing import Any

from kvmarch_ppc.hpt import (
    HPTES_PER_GROUP,
    SEGMENT_SHIFTS,
    HashLayout,
    hpt_hash,
    hpte_avpn,
    hpte_rpn,
    make_hash_layout,
    primary_group,
    secondary_group,
    slb_v,
)
from kvmarch_ppc.hpt_table import HptBackend, get_hpte, set_hpte
from kvmarch_ppc.hpte import (
    HPTE_R_C,
    HPTE_R_R,
    HPTE_V_ABSENT,
    HPTE_V_AVPN,
    HPTE_V_HVLOCK,
    HPTE_V_LARGE,
    HPTE_V_SECONDARY,
    HPTE_V_VALID,
    HpteR,
    HpteV,
    Protection,
    SegmentSize,
    hpte_is_writable,
    hpte_join,
)
from kvmarch_ppc.layout import Layout
from kvmarch_ppc.rmap import (
    KVMPPC_RMAP_LOCK,
    lock_rmap,
    rmap_add,
    rmap_head,
    rmap_remove_last,
    unlock_rmap,
)

from kvmarch import (
    BLOCKED,
    Kernel,
    Memslot,
    Part,
    Translation,
    Vcpu,
    Vm,
    invalidate_tlbs,
    op,
)

LPID = 1
"""As for radix guests: one VM, one tag."""
GUEST_VSID = 0x1234
"""The guest's first 1T segment; the others follow."""
_1T_SHIFT = SEGMENT_SHIFTS[SegmentSize.S1T]
_IN_USE = HPTE_V_VALID | HPTE_V_ABSENT
_ADDRESS = HpteV.b.mask | HPTE_V_AVPN | HPTE_V_LARGE | HPTE_V_SECONDARY
_GUEST_BITS = HpteR.pack(r=1, c=1, m=1, pp=Protection.RWRW)


class Hash(HptBackend):
    """kvm->arch of a hash guest.

    ``hpt`` is the physical address of the HPT, None once it is freed: two words per
    HPTE. ``guest_rpte``, ``forw`` and ``back`` are the fields of ``rev[]``, by HPTE;
    ``rmap`` the words of each memslot, by slot number and page; ``owed_c`` the HPTEs
    whose C hardware still has to write back.
    """

    variables = ("hpt", "guest_rpte", "forw", "back", "rmap", "owed_c", "mmio_update")
    layout: HashLayout

    def __init__(self, vm: Vm, layout: HashLayout) -> None:
        super().__init__(vm, layout)
        self.psize = 1 << layout.page_shift
        self.delays_c = vm.options["rc"] == "delayed"
        self.guest_rpte: dict[int, int] = {}
        self.forw: dict[int, int] = {}
        self.back: dict[int, int] = {}
        self.rmap: dict[int, dict[int, int]] = {}
        self.owed_c: set[int] = set()
        self.mmio_update = 0


class HashVcpu(Part):
    """vcpu->arch.mmio_cache: gfn and mmio_update of the last MMIO faults."""

    variables = ("mmio_cache",)

    def __init__(self) -> None:
        self.mmio_cache: list[tuple[int, int]] = []


def make_layout(k: Kernel, options: Mapping[str, Any]) -> HashLayout:
    """Return the entries of a hash guest."""
    isa300 = options["cpu"] == "power9"
    return make_hash_layout(options["page_size"], isa300=isa300)


def vm_create(vm: Vm, layout: Layout) -> Hash:
    """Make an empty HPT.

    :Kernel: kvmppc_allocate_hpt(), kvmppc_set_hpt().
    """
    assert isinstance(layout, HashLayout)
    return Hash(vm, layout)


def vcpu_create(vcpu: Vcpu) -> HashVcpu:
    """Make an empty MMIO cache."""
    return HashVcpu()


# -- HPTEs -------------------------------------------------------------------------


def guest_hpte(arch: Hash, gfn: int) -> tuple[int, int, int]:
    """Return V, R and the hash of the HPTE with which the guest maps a page.

    V has no state; R is the guest's, with a guest real address.
    """
    shift = arch.layout.page_shift
    large, low = arch.large
    ea = gfn << shift
    vsid = GUEST_VSID + (ea >> _1T_SHIFT)
    v = hpte_avpn(slb_v(vsid, SegmentSize.S1T), ea, shift) | large
    return v, ea | low | _GUEST_BITS, hpt_hash(vsid, ea, shift, SegmentSize.S1T)


def groups_of(arch: Hash, hash_: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return first HPTE and what V has besides, for the two groups of a hash."""
    return (
        (primary_group(hash_, arch.order) * HPTES_PER_GROUP, 0),
        (secondary_group(hash_, arch.order) * HPTES_PER_GROUP, HPTE_V_SECONDARY),
    )


def find_hpte(vm: Vm, gfn: int) -> int:
    """Return the index of the HPTE in use for a gfn; -1 if there is none.

    :Kernel: kvmppc_hv_find_lock_hpte(), without the lock.
    """
    arch: Hash = vm.arch
    if arch.hpt is None:
        return -1
    v, _r, hash_ = guest_hpte(arch, gfn)
    for first, secondary in groups_of(arch, hash_):
        wanted = v | secondary
        for index in range(first, first + HPTES_PER_GROUP):
            there = get_hpte(vm, index)[0]
            if there & _IN_USE and there & _ADDRESS == wanted:
                return index
    return -1


def gfn_of(vm: Vm, index: int) -> int:
    """Return the gfn that the guest's second doubleword of an HPTE has."""
    arch: Hash = vm.arch
    return hpte_rpn(arch.guest_rpte[index], arch.psize, arch.layout.page_shift)


def tlbie_hpte(vm: Vm, index: int) -> None:
    """Invalidate the translations of an HPTE; C is in R when this is over.

    :Kernel: do_tlbies(), global. Simplified: H_REMOVE's tlbiel for VMs of one vcore
        is not modelled.
    """
    arch: Hash = vm.arch
    if index in arch.owed_c:
        arch.owed_c.discard(index)
        v, r = get_hpte(vm, index)
        set_hpte(vm, index, v, r | HPTE_R_C)
    gfn = gfn_of(vm, index)
    invalidate_tlbs(vm, gfn, gfn + 1, LPID)


@op(name="lock HPTE")
def lock_hpte(vm: Vm, index: int) -> Any:
    """Spin until HVLOCK is free, and take it."""
    return None if try_lock_hpte.fn(vm, index) else BLOCKED


@op(name="try_lock_hpte")
def try_lock_hpte(vm: Vm, index: int) -> bool:
    """Take HVLOCK unless somebody has it."""
    v, r = get_hpte(vm, index)
    if v & HPTE_V_HVLOCK:
        return False
    set_hpte(vm, index, v | HPTE_V_HVLOCK, r)
    return True


@op(name="HVLOCK free?")
def hpte_unlocked(vm: Vm, index: int) -> Any:
    """Spin until HVLOCK is free, without taking it."""
    return BLOCKED if get_hpte(vm, index)[0] & HPTE_V_HVLOCK else None


@op(name="unlock HPTE")
def unlock_hpte(vm: Vm, index: int) -> None:
    """Give HVLOCK back."""
    v, r = get_hpte(vm, index)
    set_hpte(vm, index, v & ~HPTE_V_HVLOCK, r)


# -- reverse map -------------------------------------------------------------------


def rmap_offset(slot: Memslot, gfn: int) -> int:
    """Return the number of a page in its slot."""
    return gfn - slot.base_gfn


def get_rmap(vm: Vm, slot: Memslot, gfn: int) -> int:
    """Return the rmap word of a page."""
    words: dict[int, int] = vm.arch.rmap.get(slot.id, {})
    return words.get(gfn - slot.base_gfn, 0)


def set_rmap(vm: Vm, slot: Memslot, gfn: int, word: int) -> None:
    """Store the rmap word of a page."""
    vm.arch.rmap.setdefault(slot.id, {})[gfn - slot.base_gfn] = word


@op(name="lock_rmap")
def lock_rmap_of(vm: Vm, slot: Memslot, gfn: int) -> Any:
    """Spin until the bit lock of a page's rmap word is free, and take it."""
    word = get_rmap(vm, slot, gfn)
    if word & KVMPPC_RMAP_LOCK:
        return BLOCKED
    set_rmap(vm, slot, gfn, lock_rmap(word))
    return None


@op(name="unlock_rmap")
def unlock_rmap_of(vm: Vm, slot: Memslot, gfn: int) -> None:
    """Give the bit lock of a page's rmap word back."""
    set_rmap(vm, slot, gfn, unlock_rmap(get_rmap(vm, slot, gfn)))


def link_hpte(vm: Vm, slot: Memslot, gfn: int, index: int) -> None:
    """Put an HPTE into the chain of a page, at its end.

    :Kernel: kvmppc_add_revmap_chain()
    :Locking: the rmap bit lock.
    """
    arch: Hash = vm.arch
    word = get_rmap(vm, slot, gfn)
    head = rmap_head(word)
    if head is None:
        arch.forw[index] = arch.back[index] = index
        set_rmap(vm, slot, gfn, rmap_add(word, index))
        return
    tail = arch.back[head]
    arch.forw[tail] = arch.back[head] = index
    arch.forw[index], arch.back[index] = head, tail


def unlink_hpte(vm: Vm, slot: Memslot, gfn: int, index: int) -> None:
    """Take an HPTE out of the chain of a page.

    :Kernel: remove_revmap_chain(), kvmppc_unmap_hpte()
    :Locking: the rmap bit lock.
    """
    arch: Hash = vm.arch
    word = get_rmap(vm, slot, gfn)
    following, before = arch.forw.pop(index), arch.back.pop(index)
    if following == index:
        set_rmap(vm, slot, gfn, rmap_remove_last(word))
        return
    arch.forw[before], arch.back[following] = following, before
    if rmap_head(word) == index:
        set_rmap(vm, slot, gfn, rmap_add(word, following))


@op(name="chain")
def chain_next(vm: Vm, slot: Memslot, gfn: int, after: int) -> int:
    """Return the HPTE after one in the chain of a page; the head after -1.

    :returns: -1 at the end.
    """
    head = rmap_head(get_rmap(vm, slot, gfn))
    if after < 0 or head is None:
        return -1 if head is None else head
    following: int = vm.arch.forw[after]
    return -1 if following == head else following


# -- hardware, and looking from outside --------------------------------------------


def tlb_tag(vcpu: Vcpu) -> int:
    """Return the LPID."""
    return LPID


def translate(vcpu: Vcpu, gfn: int, access: str) -> Translation | str:
    """Look the page up in the HPT; set R and C.

    :returns: the translation, or ``missing`` (no HPTE: the guest's own fault),
        ``absent`` (the guest has one, hardware does not) or ``permission``.
    """
    vm = vcpu.vm
    arch: Hash = vm.arch
    index = find_hpte(vm, gfn)
    if index < 0:
        return "missing"
    v, r = get_hpte(vm, index)
    if not v & HPTE_V_VALID:
        return "absent"
    writable = hpte_is_writable(r)
    new = r | HPTE_R_R
    if access == "write":
        if not writable:
            return "permission"
        if not r & HPTE_R_C and arch.delays_c:
            arch.owed_c.add(index)
        else:
            new |= HPTE_R_C
    if new != r:
        set_hpte(vm, index, v, new)
    pfn = hpte_rpn(r, arch.psize, arch.layout.page_shift)
    changed = new & HPTE_R_C != 0 or index in arch.owed_c
    return Translation(gfn, 1, pfn, True, writable, True, changed)


def entry(vm: Vm, gfn: int) -> tuple[int, int]:
    """Return both doublewords of the HPTE in use for a gfn, as they lie in memory."""
    arch: Hash = vm.arch
    index = find_hpte(vm, gfn)
    if index < 0 or arch.hpt is None:
        return 0, 0
    table = vm.tables.at(arch.hpt)
    return hpte_join(table.get(2 * index), table.get(2 * index + 1)), 0


def leaf_table(vm: Vm, gfn: int, level: int) -> tuple[int, int] | None:
    """Return the HPT, and where in it V of the gfn's HPTE is; R is the next word."""
    arch: Hash = vm.arch
    index = find_hpte(vm, gfn)
    return None if index < 0 or arch.hpt is None or level else (arch.hpt, 2 * index)


@op(name="kvmppc_free_hpt")
def _free_hpt(vm: Vm) -> None:
    arch: Hash = vm.arch
    if arch.hpt is not None:
        vm.tables.free(vm.tables.at(arch.hpt))
        arch.hpt = None
    for vcpu in vm.vcpus:
        vcpu.tlb.drop_all(LPID)


async def destroy_vm(vm: Vm) -> None:
    """Free the HPT, and flush the LPID.

    :Kernel: kvmppc_core_destroy_vm_hv(). Simplified: before POWER9 the flush is done
        for the next VM that gets the LPID; nobody can tell here.
    """
    await _free_hpt(vm)
