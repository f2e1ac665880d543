"""The partition-table entry of a VM: two doublewords that hold the root.

:Kernel: kvmppc_setup_partition_table() in arch/powerpc/kvm/book3s_hv.c and
    arch/powerpc/include/asm/book3s/64/mmu.h, POWER9 on (v4.11 to v6.19).

Positions are those of the fact sheet ppc, section 3.3.
"""

__all__ = [
    "MAX_HPT_ORDER",
    "MIN_HPT_ORDER",
    "PartitionHash0",
    "PartitionHash1",
    "PartitionRadix0",
    "PartitionRadix1",
    "ProcessTable",
    "hash_dword0",
    "make_sdr1",
    "radix_dword0",
    "radix_dword1",
]

from kvmarch_ppc.layout import REAL_ADDRESS_BITS

from kvmarch import EntryError, EntryFormat, Field

RTS_BIAS = 31
GPA_BITS = 52
PGD_SHIFT = 16
"""log2 of the bytes of a root table."""
MIN_HPT_ORDER = 18
MAX_HPT_ORDER = 46
"""log2 of the bytes of a hashed page table."""


class PartitionRadix0(EntryFormat):
    """First doubleword of a radix guest: where the tree is, and its shape."""

    hr = Field(63, fixed=1, doc="PATB_HR: translated by a radix tree")
    rts = Field(
        7,
        5,
        parts=((62, 61),),
        fixed=GPA_BITS - RTS_BIAS,
        doc="guest real address bits, minus 31; the low part comes first",
    )
    pa = Field(
        REAL_ADDRESS_BITS - 1, PGD_SHIFT, shift=PGD_SHIFT, doc="real address of the PGD"
    )
    rpds = Field(4, 0, fixed=13, doc="index bits of the PGD")


class PartitionHash0(EntryFormat):
    """First doubleword of a hash guest: where the HPT is."""

    hr = Field(63, fixed=0, doc="PATB_HR: translated by a radix tree")
    htaborg = Field(
        REAL_ADDRESS_BITS - 1,
        MIN_HPT_ORDER,
        shift=MIN_HPT_ORDER,
        doc="real address of the HPT",
    )
    # The place of the page size is not in the fact sheet: it was read in
    # kvmppc_setup_partition_table().
    vrma_l = Field(7, doc="VRMA page size: SLB_VSID_L")
    vrma_lp = Field(6, 5, doc="VRMA page size: SLB_VSID_LP")
    htabsize = Field(4, 0, doc="order of the HPT, minus 18")


class ProcessTable(EntryFormat):
    """Second doubleword: the guest's process table.

    Its fields are not in the fact sheet: they are PRTB_MASK and PRTS_MASK.
    """

    prtb = Field(59, 12, shift=12, doc="guest real address of the process table")
    prts = Field(4, 0, doc="size of the process table")


class PartitionRadix1(ProcessTable):
    """Second doubleword of a radix guest."""

    gr = Field(63, fixed=1, doc="PATB_GR: the guest uses radix")


class PartitionHash1(ProcessTable):
    """Second doubleword of a hash guest."""

    gr = Field(63, fixed=0, doc="PATB_GR: the guest uses radix")


def radix_dword0(pgd_pa: int) -> int:
    """Return the first doubleword for a radix tree.

    :param pgd_pa: real address of the root table in bytes.
    """
    return PartitionRadix0.kind_value | PartitionRadix0.pa.place(pgd_pa)


def radix_dword1(process_table: int) -> int:
    """Return the second doubleword of a radix guest.

    :param process_table: address and size as the guest registered them.
    """
    return PartitionRadix1.kind_value | process_table


def make_sdr1(hpt_pa: int, order: int) -> int:
    """Return the value that says where an HPT is; before POWER9 it goes into SDR1.

    :Kernel: kvmppc_set_hpt().
    :param hpt_pa: real address of the HPT in bytes.
    :param order: log2 of its bytes.
    :raises EntryError: there are no such HPTs.
    """
    if not MIN_HPT_ORDER <= order <= MAX_HPT_ORDER:
        raise EntryError(
            f"HPT order {order} is not in {MIN_HPT_ORDER} to {MAX_HPT_ORDER}"
        )
    size = PartitionHash0.htabsize.place(order - MIN_HPT_ORDER)
    return PartitionHash0.htaborg.place(hpt_pa) | size


def hash_dword0(sdr1: int, *, vrma_64k: bool = False, vrma_large: bool = False) -> int:
    """Return the first doubleword of a hash guest.

    :param sdr1: from :func:`make_sdr1`.
    :param vrma_64k: the VRMA has 64 KiB pages.
    :param vrma_large: it has 16 MiB pages. If neither, 4 KiB.
    """
    # kvmppc_setup_partition_table() moves two fields of the VRMA's SLB entry here:
    # L is set for both larger sizes, LP is 1 for 64 KiB.
    large = PartitionHash0.vrma_l.place(int(vrma_64k or vrma_large))
    return sdr1 | large | PartitionHash0.vrma_lp.place(int(vrma_64k))
