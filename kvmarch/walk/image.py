"""Images of physical memory: raw files and ELF cores, mapped and never read whole."""

__all__ = ["Image", "Region", "open_image"]

import mmap
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self

from kvmarch.errors import WalkError

GRAIN = 4096
"""The smallest page there is: a raw image of a machine has whole ones."""

_ELF = b"\x7fELF"
_KDUMP = (b"KDUMP   ", b"makedumpfile")
_CORE = 4
_LOAD = 1
_MANY = 0xFFFF
"""PN_XNUM: the number of segments is in the first section header."""


class Region(NamedTuple):
    """A run of physical memory: address and size in bytes, and where it is in the file.

    A size of None in what a user gives means the rest of the file.
    """

    pa: int
    size: int | None
    offset: int


class Image:
    """Physical memory by address. Use it as a context, or close it.

    :param path: for messages.
    :param regions: by address, none overlapping another.
    :param byteorder: of the machine, if the file says so.
    """

    def __init__(
        self,
        path: str,
        buffer: mmap.mmap,
        regions: Sequence[Region],
        byteorder: Literal["little", "big", ""] = "",
    ) -> None:
        self.path, self.buffer, self.byteorder = path, buffer, byteorder
        self.regions = tuple(regions)
        self._starts = [region.pa for region in regions]
        self._ends = [region.pa + (region.size or 0) for region in regions]
        self._moves = [region.offset - region.pa for region in regions]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_why: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; arrays that were made of it keep it."""
        try:
            self.buffer.close()
        except BufferError:
            # An array still looks into it; it is closed with the last of them.
            return

    def offset(self, pa: int, size: int) -> int | None:
        """Return where in the file a run of memory is; None if it is not all there."""
        at = bisect_right(self._starts, pa) - 1
        if at < 0 or pa + size > self._ends[at]:
            return None
        return pa + self._moves[at]

    def region(self, pa: int) -> tuple[int, int, int]:
        """Return first address, end and move to the file of the region of an address.

        :raises WalkError: it is outside the image.
        """
        at = bisect_right(self._starts, pa) - 1
        if at < 0 or pa >= self._ends[at]:
            raise WalkError(f"{self.path}: {pa:#x} is outside the image ({self.span})")
        return self._starts[at], self._ends[at], self._moves[at]

    def read(self, pa: int, size: int) -> bytes:
        """Return some bytes of memory.

        :raises WalkError: they are not all in the image.
        """
        offset = self.offset(pa, size)
        if offset is None:
            raise WalkError(f"{self.path}: {pa:#x} is outside the image ({self.span})")
        return self.buffer[offset : offset + size]

    @property
    def span(self) -> str:
        """Return the addresses that there are, for messages."""
        shown = [f"{r.pa:#x} to {r.pa + (r.size or 0):#x}" for r in self.regions[:4]]
        more = len(self.regions) - len(shown)
        return ", ".join([*shown, f"and {more} regions more"] if more else shown)


def open_image(path: str, ram: Sequence[Region] = ()) -> Image:
    """Open a raw image or an ELF core (``dump-guest-memory``, ``/proc/vmcore``).

    :param ram: what the file holds, for a raw one. Without it an ELF core is
        recognised, and any other file holds the memory from address 0 on.
    :raises WalkError: it cannot be read, is torn, or is something else.
    """
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            if not size:
                raise WalkError(f"{path}: is empty")
            buffer = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise WalkError(f"{path}: {why}") from None
    if not ram:
        head = buffer[:16]
        if head.startswith(_ELF):
            regions, byteorder = _segments(path, buffer)
            return Image(path, buffer, regions, byteorder)
        if head.startswith(_KDUMP):
            raise WalkError(
                f"{path}: is a kdump-compressed dump; wanted an ELF core or raw memory"
            )
        ram = (Region(0, None, 0),)
    return Image(path, buffer, _raw(path, size, ram))


def _raw(path: str, size: int, ram: Sequence[Region]) -> list[Region]:
    """Return the regions of a raw file, checked and with their sizes."""
    if size % GRAIN:
        raise WalkError(
            f"{path}: is torn: {size} bytes are no whole number of {GRAIN} byte pages"
        )
    regions = []
    for pa, wanted, offset in ram:
        length = size - offset if wanted is None else wanted
        if length <= 0 or offset + length > size:
            raise WalkError(
                f"{path}: is torn or has other regions: it ends at {size:#x}, the "
                f"memory from {pa:#x} on at {offset + max(length, 0):#x}"
            )
        regions.append(Region(pa, length, offset))
    return _sorted(path, regions)


def _sorted(path: str, regions: list[Region]) -> list[Region]:
    """Return the regions by address, those that continue each other as one.

    :raises WalkError: two say different things of the same address.
    """
    joined: list[tuple[int, int, int]] = []
    for pa, size, offset in sorted(regions):
        assert size is not None
        if joined:
            start, length, at = joined[-1]
            end = start + length
            if pa <= end and offset - pa == at - start:
                joined[-1] = (start, max(end, pa + size) - start, at)
                continue
            if pa < end:
                raise WalkError(
                    f"{path}: two regions hold address {pa:#x}: is it a process's "
                    "core, or are the regions wrong?"
                )
        joined.append((pa, size, offset))
    return [Region(*row) for row in joined]


class _Elf(NamedTuple):
    """Where the fields of the headers are, by class of the file."""

    header: str
    """e_type, e_phoff, e_shoff, e_phentsize, e_phnum behind the identification."""
    segment: str
    """p_type, p_offset, p_paddr, p_filesz."""
    section_info: tuple[str, int]


_CLASSES = {
    1: _Elf("H2x4x4xII4x2xHH", "II4xII", ("I", 28)),
    2: _Elf("H2x4x8xQQ4x2xHH", "I4xQ8xQQ", ("I", 44)),
}


def _segments(
    path: str, buffer: mmap.mmap
) -> tuple[list[Region], Literal["little", "big"]]:
    """Return the memory that an ELF core holds, and the machine's byte order."""
    ident = buffer[:16]
    kind = _CLASSES.get(ident[4]) if len(ident) > 5 else None
    order: Literal["little", "big"] = "big" if ident[5:6] == b"\2" else "little"
    if kind is None or ident[5:6] not in {b"\1", b"\2"}:
        raise WalkError(f"{path}: is an ELF file of no known class")
    mark = "<" if order == "little" else ">"
    try:
        e_type, phoff, shoff, entsize, count = struct.unpack_from(
            mark + kind.header, buffer, 16
        )
        if count == _MANY:
            what, where = kind.section_info
            (count,) = struct.unpack_from(mark + what, buffer, shoff + where)
        segments = list(_rows(mark + kind.segment, buffer, phoff, entsize, count))
    except struct.error:
        raise WalkError(f"{path}: is torn: its program headers are cut off") from None
    if e_type != _CORE:
        raise WalkError(f"{path}: is an ELF file, but no core")
    regions = []
    for p_type, offset, pa, size in segments:
        if p_type != _LOAD or not size:
            continue
        if offset + size > len(buffer):
            missing = offset + size - len(buffer)
            raise WalkError(
                f"{path}: is torn: {missing:#x} bytes of the memory at {pa:#x} are "
                "missing"
            )
        regions.append(Region(pa, size, offset))
    if not regions:
        raise WalkError(f"{path}: is an ELF core without memory")
    return _sorted(path, regions), order


def _rows(
    layout: str, buffer: mmap.mmap, start: int, step: int, count: int
) -> Iterator[tuple[int, int, int, int]]:
    if step < struct.calcsize(layout):
        raise struct.error
    for at in range(count):
        yield struct.unpack_from(layout, buffer, start + at * step)
