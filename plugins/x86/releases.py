"""What each release of KVM/x86 puts into its entries: one row per layout.

Rows are the columns of the fact sheet x86, sections 1.3 and 1.6. A layout is named
after a release that has it; the comment beside it says for which others it stands.
"""

__all__ = ["GENERATIONS", "RELEASES", "Generation", "Release", "saved_bits"]

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from kvmarch_x86.spte_fields import (
    AdKind52,
    AdKind60,
    AdKind62,
    EptEntry,
    Frozen72,
    Frozen612,
    MmioMark42,
    MmioMark411,
    MmioMark510,
    MmioMark612,
    MmuPresent,
    NonPresent0,
    NonPresent63,
    Removed,
    Removed512,
    Saved52,
    Saved52WithoutXu,
    Saved54,
    Spte,
    SuppressVe,
    UserExecute,
    Writable9,
    Writable10,
    Writable53,
    Writable57,
)

from kvmarch import Field


@dataclass(frozen=True)
class Release:
    """What makes up one release's layout.

    :param common: bits of every present entry, per paging kind.
    :param writable: software bits of leafs, per paging kind.
    :param saved: what access tracking puts aside, EPT only.
    :param nonpresent: the empty entry.
    :param frozen: the entry that is being changed under a shared lock.
    :param mark: what marks an MMIO entry besides bits that hardware refuses.
    :param mmio_test: what is_mmio_spte() looks at: the bits that are ``set`` in every
        MMIO entry, the ``mark`` alone, or all ``fixed`` bits.
    :param all_reserved: an MMIO entry of NPT sets all reserved address bits, not one.
    :param present_read: whether shadow_present_mask of EPT has R where the processor
        allows execute-only entries, and where it does not.
    :param modern: knows L1TF, memory encryption and NX huge pages.
    :param ad_in_software: A and D are kept in their bits even without hardware.
    :param lockless_host: a fast page fault looks at host-writable too.
    :param change_pte_keeps: change_pte leaves MMU-writable as it is.
    :param wrap_needs_mmio: the wrap of the generation is of no interest where no MMIO
        entries are made.
    :param guest_mtrr: with non-coherent DMA a leaf gets the guest's MTRR type.
    """

    common: Mapping[str, tuple[type[Spte], ...]]
    writable: Mapping[str, type[Spte]]
    saved: type[Spte] | None
    nonpresent: type[Spte]
    frozen: type[Spte] | None
    mark: Mapping[str, tuple[type[Spte], ...]]
    mmio_test: Literal["set", "mark", "fixed"] = "fixed"
    all_reserved: bool = False
    present_read: tuple[bool, bool] = (False, True)
    modern: bool = True
    ad_in_software: bool = False
    lockless_host: bool = False
    change_pte_keeps: bool = False
    wrap_needs_mmio: bool = False
    guest_mtrr: bool = False


_WRITABLE_61 = {"ept": Writable57, "npt": Writable9}
_UNMARKED = {"ept": (), "npt": ()}

_ROWS: dict[str, Release] = {
    # v3.16 to v4.10: no A/D kind, no access tracking.
    "4.2": Release(
        common={"ept": (), "npt": ()},
        writable={"ept": Writable10, "npt": Writable10},
        saved=None,
        nonpresent=NonPresent0,
        frozen=None,
        mark={"ept": (MmioMark42,), "npt": (MmioMark42,)},
        mmio_test="set",
        all_reserved=True,
        # set_spte() sets bit 0 whatever the processor can do.
        present_read=(True, True),
        modern=False,
        lockless_host=True,
        change_pte_keeps=True,
        guest_mtrr=True,
    ),
    # v4.11 to v5.3: the special bit and the saved permissions were read in
    # 6eeb4ef049e7, which moved them. Up to v4.12 only tracked entries had that bit.
    "4.11": Release(
        common={"ept": (AdKind62,), "npt": (AdKind62,)},
        writable={"ept": Writable10, "npt": Writable10},
        saved=Saved52WithoutXu,
        nonpresent=NonPresent0,
        frozen=None,
        mark={"ept": (MmioMark411,), "npt": (MmioMark411,)},
        all_reserved=True,
        lockless_host=True,
        change_pte_keeps=True,
        guest_mtrr=True,
    ),
    # v5.4 to v5.11.
    "5.10": Release(
        common={"ept": (AdKind52,), "npt": (AdKind52,)},
        writable={"ept": Writable10, "npt": Writable10},
        saved=Saved54,
        nonpresent=NonPresent0,
        frozen=None,
        mark={"ept": (MmioMark510,), "npt": (MmioMark510,)},
        mmio_test="mark",
        lockless_host=True,
        change_pte_keeps=True,
        guest_mtrr=True,
    ),
    # v5.13 to v6.9; up to v5.16 change_pte keeps MMU-writable, see f082d86ea685.
    "6.1": Release(
        common={"ept": (MmuPresent, AdKind52), "npt": (MmuPresent, AdKind52)},
        writable=_WRITABLE_61,
        saved=Saved54,
        nonpresent=NonPresent0,
        frozen=Removed,
        mark=_UNMARKED,
        guest_mtrr=True,
    ),
    # From v6.10.
    "6.12": Release(
        common={
            "ept": (MmuPresent, AdKind52, SuppressVe),
            "npt": (MmuPresent, AdKind52),
        },
        writable=_WRITABLE_61,
        saved=Saved54,
        nonpresent=NonPresent63,
        frozen=Frozen612,
        mark={"ept": (MmioMark612,), "npt": ()},
    ),
    # Absent from v6.12, read in v7.2; its first release is unverified.
    "7.2": Release(
        common={
            "ept": (MmuPresent, AdKind60, SuppressVe, UserExecute),
            "npt": (MmuPresent, AdKind60),
        },
        writable={"ept": Writable53, "npt": Writable9},
        saved=Saved52,
        nonpresent=NonPresent63,
        frozen=Frozen72,
        mark={"ept": (MmioMark612,), "npt": ()},
        present_read=(False, False),
        ad_in_software=True,
        wrap_needs_mmio=True,
    ),
}

# v5.12: as before, and the TDP MMU marks entries that it changes.
_ROWS["5.12"] = replace(_ROWS["5.10"], frozen=Removed512)
# v6.13 to v7.1: A and D in software.
_ROWS["6.13"] = replace(_ROWS["6.12"], ad_in_software=True)

RELEASES: Mapping[str, Release] = _ROWS
"""By name of the layout."""


@dataclass(frozen=True)
class Generation:
    """How an MMIO entry holds a slice of the memslot generation.

    :param low: highest and lowest bit of the entry that hold the lower part.
    :param high: the same for the upper part.
    :param shift: low bits of the generation that are not stored, taken as zero.
    :param bias: what is added to the memslots' generation before it is sliced.
    :param in_progress: the bit of the memslots' generation that says an update is
        under way; 0 where an odd generation says it.
    :param strides: the step of the generation between two updates of one address
        space; its multiples decide when the slice wraps.
    :param wraps_at_end: the slice counts as wrapped at its last value, not at zero.
    """

    low: tuple[int, int]
    high: tuple[int, int]
    shift: int = 0
    bias: int = 0
    in_progress: int = 1 << 63
    strides: int = 2
    wraps_at_end: bool = False

    @property
    def bits(self) -> int:
        """Return how many bits of the generation count."""
        stored = sum(top - bottom + 1 for top, bottom in (self.low, self.high))
        return stored + self.shift

    def field(self) -> Field:
        """Return a new field for the generation."""
        doc = "slice of the memslot generation"
        if self.shift:
            return Field(*self.low, parts=(self.high,), shift=self.shift, doc=doc)
        return Field(*self.low, parts=(self.high,), doc=doc)


GENERATIONS: Mapping[str, Generation] = {
    # v3.11 to v3.16. Widths and wrap test are not in the fact sheet: they were read in
    # a v3.11 tree; that v3.16 still had them is unverified. The bias makes a new VM
    # wrap after 150 updates: MMIO_MAX_GEN - 150.
    "3.16": Generation(
        low=(11, 3),
        high=(61, 52),
        bias=(1 << 19) - 1 - 150,
        in_progress=0,
        strides=1,
        wraps_at_end=True,
    ),
    # Linux kernel commit ee3d1570b586 (in v3.17): odd while an update is under way.
    "4.2": Generation(low=(11, 3), high=(61, 52), shift=1, in_progress=0, strides=1),
    # As the row above, so that a layout has a generation of its name.
    "4.11": Generation(low=(11, 3), high=(61, 52), shift=1, in_progress=0, strides=1),
    # v5.1 to v5.3; the positions are those of generic facts 2.10.
    "5.1": Generation(low=(11, 3), high=(61, 52)),
    "5.10": Generation(low=(11, 3), high=(62, 54)),
    "5.12": Generation(low=(11, 3), high=(62, 54)),
    # In the v5.13 cycle only ("Exclude the MMU_PRESENT bit from MMIO SPTE's
    # generation" ended it): the lower part covers KVM's own present bit.
    "5.13-rc": Generation(low=(11, 3), high=(62, 52)),
    "6.1": Generation(low=(10, 3), high=(62, 52)),
    "6.12": Generation(low=(10, 3), high=(62, 52)),
    "6.13": Generation(low=(10, 3), high=(62, 52)),
    "7.2": Generation(low=(9, 3), high=(62, 52)),
}


def saved_bits(release: str, paging: str) -> tuple[int, int]:
    """Return the permissions that access tracking saves, and how far it moves them.

    :returns: the mask of the bits before they are moved, and the distance.
    """
    saved = RELEASES[release].saved
    if saved is None or paging == "npt":
        return 0, 0
    sources = {"saved_r": EptEntry.r, "saved_x": EptEntry.x, "saved_xu": UserExecute.xu}
    shift = saved.fields["saved_r"].low - EptEntry.r.low
    mask = 0
    for name, field in saved.fields.items():
        mask |= sources[name].mask
        assert field.low == sources[name].low + shift
    return mask, shift
