"""Shape of the G-stage: modes, levels, indices, and the register that names the root.

:Kernel: gstage_pte_index(), kvm_riscv_gstage_mode_detect(), asm/csr.h (fact sheet
    riscv, 1.2, 1.3).

Levels count from the leaf: 0 holds entries of 4 KiB pages, 1 of 2 MiB, 2 of 1 GiB.
"""

__all__ = [
    "ENTRIES",
    "INDEX_BITS",
    "LEAF_LEVELS",
    "MODES",
    "PAGE_SHIFT",
    "ROOT_ENTRIES",
    "Hgatp",
    "Hgatp32",
    "HgatpMode",
    "Mode",
    "fault_gpa",
    "hfence_operand",
    "index_split",
    "level_pages",
]

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

from kvmarch import EntryFormat, Field

PAGE_SHIFT = 12
INDEX_BITS = 9
ENTRIES = 1 << INDEX_BITS
ROOT_ENTRIES = ENTRIES << 2
"""The root's index has two bits more: four pages side by side, 16 KiB aligned."""

LEAF_LEVELS = (0, 1, 2)
"""Where KVM makes leaves: of PAGE_SIZE, PMD_SIZE and PUD_SIZE."""


@dataclass(frozen=True, slots=True)
class Mode:
    """One mode of hgatp.

    :param number: what hgatp.MODE holds.
    :param levels: how many tables a walk goes through.
    """

    name: str
    number: int
    levels: int

    @property
    def gpa_bits(self) -> int:
        """Return how many bits a guest-physical address has."""
        return PAGE_SHIFT + INDEX_BITS * self.levels + 2

    @property
    def gfns(self) -> int:
        """Return how many gfns there are."""
        return 1 << self.gpa_bits - PAGE_SHIFT


MODES: Mapping[str, Mode] = MappingProxyType(
    {
        "sv39x4": Mode("sv39x4", 8, 3),
        "sv48x4": Mode("sv48x4", 9, 4),
        "sv57x4": Mode("sv57x4", 10, 5),
    }
)
"""The modes of RV64. RV32 has Sv32x4 only, which is not modelled."""


class HgatpMode(IntEnum):
    """hgatp.MODE of RV64."""

    BARE = 0
    SV39X4 = 8
    SV48X4 = 9
    SV57X4 = 10


class Hgatp(EntryFormat):
    """Guest address translation register of RV64."""

    mode = Field(63, 60, enum=HgatpMode, doc="how many levels the G-stage has")
    vmid = Field(57, 44, doc="tag of the guest's translations")
    ppn = Field(43, 0, doc="page number of the root; the two lowest bits are 0")


class Hgatp32(EntryFormat):
    """Guest address translation register of RV32."""

    width = 32

    mode = Field(31, doc="0 is Bare, 1 is Sv32x4")
    vmid = Field(28, 22, doc="tag of the guest's translations")
    ppn = Field(21, 0, doc="page number of the root; the two lowest bits are 0")


def level_pages(level: int) -> int:
    """Return how many pages an entry of a level covers."""
    return 1 << INDEX_BITS * level


def index_split(mode: Mode, gpa: int) -> list[int]:
    """Return the index of a GPA (bytes) at every level, from the root down."""
    gfn = gpa >> PAGE_SHIFT
    root = mode.levels - 1
    return [
        gfn >> INDEX_BITS * level & (ROOT_ENTRIES if level == root else ENTRIES) - 1
        for level in range(root, -1, -1)
    ]


def hfence_operand(gpa: int) -> int:
    """Return what hfence.gvma takes for a GPA in bytes: its bits from 2 on."""
    return gpa >> 2


def fault_gpa(htval: int, stval: int) -> int:
    """Return the GPA in bytes of a guest page fault.

    :Kernel: gstage_page_fault(): htval lacks the two lowest bits, stval has them.
    """
    return htval << 2 | stval & 3
