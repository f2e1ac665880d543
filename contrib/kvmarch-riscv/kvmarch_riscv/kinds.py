"""Which kinds of entry a machine's tables hold, and of which a value is."""

__all__ = ["CHOICES", "decode", "formats"]

from collections.abc import Mapping
from typing import Any

from kvmarch import Choice, EntryError, EntryFormat, EntryKind, Kernel

from kvmarch_riscv.formats import (
    Device,
    Empty,
    KernelDevice,
    KernelDevicePbmt,
    PlainDevice,
    Table,
    leaf_format,
)
from kvmarch_riscv.geometry import LEAF_LEVELS, MODES

device_user = Choice(
    "riscv_device_user", "whether pages of devices are mapped so that guests may"
)
device_user.add(False)
device_user.add(True, "riscv-ioremap-user")

device_uncached = Choice(
    "riscv_device_uncached", "whether pages of devices are mapped uncached"
)
device_uncached.add(False)
device_uncached.add(True, "riscv-ioremap-uncached")

CHOICES = (device_user, device_uncached)


def _device(k: Kernel, options: Mapping[str, Any]) -> type[EntryFormat]:
    """Return the format in which this kernel maps a page of a device."""
    pbmt = bool(options["svpbmt"]) and k.riscv_device_uncached
    if k.riscv_device_user:
        return Device if pbmt else PlainDevice
    return KernelDevicePbmt if pbmt else KernelDevice


def formats(k: Kernel, options: Mapping[str, Any]) -> list[EntryKind]:
    """Return every kind of entry that this kernel writes, root level first."""
    rows = []
    for level in range(MODES[options["mode"]].levels - 1, -1, -1):
        rows.append(EntryKind(level, "none", Empty))
        if level:
            rows.append(EntryKind(level, "table", Table))
        if level in LEAF_LEVELS:
            rows.append(EntryKind(level, "leaf", leaf_format(level), maps=True))
    rows.append(EntryKind(0, "device", _device(k, options), maps=True))
    return rows


def decode(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int
) -> tuple[str, Mapping[str, int]]:
    """Return what an entry is, and its fields.

    :raises EntryError: there is no such level, or the value has more than 64 bits.
    """
    levels = MODES[options["mode"]].levels
    if not 0 <= level < levels:
        raise EntryError(f"the G-stage has levels 0 to {levels - 1}, not {level}")
    if not 0 <= entry < 1 << EntryFormat.width:
        raise EntryError(f"{entry:#x} is no {EntryFormat.width}-bit value")
    for at, kind, fmt, _maps in formats(k, options):
        if at == level and fmt.accepts(entry):
            return kind, fmt.unpack(entry)
    return "unknown", {}
