"""What entries are called: kinds and fields, as the architecture's plugin has them."""

__all__ = ["Machine", "Named", "Names", "machine_of"]

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from kvmarch.changes import Kernel, show_release
from kvmarch.errors import WalkError
from kvmarch.format.bits import EntryFormat
from kvmarch.format.walk import WalkLayout, WalkRule
from kvmarch.plugins import Plugins, link
from kvmarch.scenarios.compare import Choose

if TYPE_CHECKING:
    from kvmarch.arch import EntryKind

SIZES = "BKMGTPE"


class Machine(NamedTuple):
    """A kernel with its machine's options, and how it keeps a VM's tables."""

    k: Kernel
    options: Mapping[str, Any]
    layout: WalkLayout

    @property
    def title(self) -> str:
        """Return architecture, release and the options, for headings."""
        settled = " ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.k.arch} {show_release(self.k.release)} {settled}"


def machine_of(plugins: Plugins, choose: Choose) -> Machine:
    """Return the machine that a command's options choose; the newest release is usual.

    :raises KvmarchError: several are chosen.
    :raises WalkError: its MMU keeps no tree, or the plugin does not say how it is.
    """
    arch, release = choose.one(plugins, "tables are")
    k = link(arch, release, **choose.changes_for(arch, plugins))
    options = arch.info.settle(release, choose.options_for(arch, plugins))
    if "walk" not in arch.operations:
        raise WalkError(f"the plugin of {arch.name} does not say how tables are walked")
    layout = k.walk.fn(k, options)
    if layout is None:
        mmu = f" mmu={options['mmu']}" if "mmu" in options else ""
        raise WalkError(f"{arch.name}{mmu} keeps no tree of tables that can be walked")
    return Machine(k, options, layout)


class Named(NamedTuple):
    """What an entry is.

    :param format: None if nothing accepts the value.
    :param fields: by name, highest bit first.
    """

    kind: str
    format: type[EntryFormat] | None
    fields: Mapping[str, int]

    def show(self) -> str:
        """Return the fields that are not zero, and could be otherwise."""
        if self.format is None:
            return ""
        return " ".join(
            f"{name}={self.format.fields[name].show(value)}"
            for name, value in self.fields.items()
            if value and self.format.fields[name].fixed is None
        )


class Names:
    """Decodes entries of one machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._formats: dict[tuple[int, str], list[EntryKind]] = {}
        for row in machine.k.formats.fn(machine.k, machine.options):
            self._formats.setdefault((row.level, row.kind), []).append(row)

    def of(self, entry: int, level: int) -> Named:
        """Return what an entry is at a level."""
        k, options, _ = self.machine
        kind, fields = k.decode.fn(k, options, entry, level)
        for row in self._formats.get((level, kind), ()):
            if row.format.accepts(entry):
                return Named(kind, row.format, fields)
        return Named(kind, None, fields)

    def maps(self, entry: int, level: int) -> bool:
        """Return whether an entry leads to a page, by the plugin's own word."""
        kind = self.of(entry, level).kind
        return any(row.maps for row in self._formats.get((level, kind), ()))

    def permissions(self, named: Named) -> str:
        """Return the permission fields that are not zero; bits by name only."""
        words = []
        for name in self.machine.layout.permissions:
            value = named.fields.get(name, 0)
            if value and named.format is not None:
                field = named.format.fields[name]
                wide = field.width > 1
                words.append(f"{name}={field.show(value)}" if wide else name)
        return " ".join(words)

    def memory_type(self, named: Named) -> str:
        """Return the memory type as the format shows it."""
        name = self.machine.layout.memory_type
        if named.format is None or name not in named.fields:
            return ""
        return named.format.fields[name].show(named.fields[name])


def address_bits(rule: WalkRule | None) -> int:
    """Return the bits of entries of a rule that are the address, not the attributes."""
    bits = 0
    for mask, _ in rule.address if rule else ():
        bits |= mask
    return bits


def size_name(shift: int) -> str:
    """Return a size given as log2 of bytes, such as ``2M``."""
    return f"{1 << shift % 10}{SIZES[shift // 10]}"
