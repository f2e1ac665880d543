"""The tables of the command that walks images."""

__all__ = ["Asked", "path_table", "ranges_table", "summary_table"]

from typing import TYPE_CHECKING, NamedTuple

from kvmarch.errors import KvmarchError, WalkError
from kvmarch.plugins import Plugins
from kvmarch.report.table import Column, Table
from kvmarch.scenarios.compare import Choose
from kvmarch.walk.image import Region, open_image
from kvmarch.walk.names import Machine, Names, machine_of, size_name
from kvmarch.walk.path import UNKNOWN, Visit, Walker

if TYPE_CHECKING:
    from collections.abc import Collection

    from kvmarch.walk.contents import Tally
    from kvmarch.walk.tree import Tree

_MAPS = frozenset({"leaf", "kept"})


class Asked(NamedTuple):
    """What is to be walked.

    :param path: the image.
    :param ram: the regions of a raw image; empty for an ELF core, or memory from 0 on.
    :param byteorder: of the machine, empty if the image tells it.
    """

    path: str
    root: int
    ram: tuple[Region, ...] = ()
    byteorder: str = ""


def path_table(plugins: Plugins, choose: Choose, asked: Asked, gpa: int) -> Table:
    """Return the entries that one guest-physical address passes.

    :raises WalkError: the image or the tree cannot be walked.
    """
    machine = machine_of(plugins, choose)
    names = Names(machine)
    table = Table(
        f"{gpa:#x} in {asked.path}: {machine.title}",
        (
            Column("level"),
            Column("table"),
            Column("index"),
            Column("entry"),
            Column("kind"),
            Column("fields"),
        ),
    )
    with open_image(asked.path, asked.ram) as image:
        walker = Walker(image, machine.layout, asked.root, asked.byteorder)
        visits = walker.follow(gpa)
    for visit in visits:
        named = names.of(visit.entry, visit.level)
        table.rows.append(
            {
                "level": visit.level,
                "table": f"{visit.table:#x}",
                "index": visit.at,
                "entry": f"{visit.entry:#x}",
                "kind": named.kind,
                "fields": named.show(),
            }
        )
    table.notes.append(_end(machine, visits[-1], gpa))
    return table


def _end(machine: Machine, last: Visit, gpa: int) -> str:
    """Return where a walk ended, as a sentence."""
    rule = last.rule
    at = f"level {last.level}"
    if rule is None or rule.role not in _MAPS:
        why = "an entry of no known kind" if rule is None else "nothing is mapped"
        return f"{gpa:#x}: {why} at {at}"
    shift = machine.layout.by_level[last.level].leaf_shift(rule)
    pa = rule.address_of(last.entry) | gpa & (1 << shift) - 1
    size = size_name(shift)
    if rule.role == "kept":
        return f"{gpa:#x}: {pa:#x} is kept by a leaf of {size}, but hardware faults"
    return f"{gpa:#x} is mapped to {pa:#x} by a leaf of {size}"


def summary_table(plugins: Plugins, choose: Choose, asked: Asked) -> Table:
    """Return the leaves of a tree counted by size, permission and memory type.

    :raises WalkError: the image or the tree cannot be walked.
    """
    machine = machine_of(plugins, choose)
    names = Names(machine)
    table = Table(
        f"{asked.path}: {machine.title}",
        (
            Column("size"),
            Column("level"),
            Column("kind"),
            Column("permissions"),
            Column("memory_type"),
            Column("entries"),
            Column("bytes"),
        ),
        keys=3,
    )
    tree = _tree(machine, asked)
    counts: dict[tuple[int, int, str, str, str], int] = {}
    from kvmarch.walk.contents import tally

    found = tally(tree)
    for row, count in found.items():
        named = names.of(row.entry, row.level)
        about = names.permissions(named), names.memory_type(named)
        key = row.shift, row.level, _kind(names, row), *about
        counts[key] = counts.get(key, 0) + count
    for (shift, level, kind, permissions, memory), count in sorted(
        counts.items(), key=lambda item: (-item[0][0], item[0][2:])
    ):
        table.rows.append(
            {
                "size": size_name(shift),
                "level": level,
                "kind": kind,
                "permissions": permissions,
                "memory_type": memory,
                "entries": count,
                "bytes": count << machine.layout.by_level[level].shift,
            }
        )
    _about(table, tree, found, names)
    return table


def ranges_table(plugins: Plugins, choose: Choose, asked: Asked) -> Table:
    """Return all leaves of a tree; those that differ in nothing but address as one.

    :raises WalkError: the image or the tree cannot be walked.
    """
    machine = machine_of(plugins, choose)
    names = Names(machine)
    table = Table(
        f"{asked.path}: {machine.title}",
        (
            Column("gpa"),
            Column("end"),
            Column("size"),
            Column("leaves"),
            Column("pa"),
            Column("pieces"),
            Column("kind"),
            Column("fields"),
        ),
        keys=2,
    )
    tree = _tree(machine, asked)
    from kvmarch.walk.contents import ranges_of

    ranges = ranges_of(tree)
    for row in ranges:
        named = names.of(row.tally.entry, row.tally.level)
        table.rows.append(
            {
                "gpa": f"{row.gpa:#x}",
                "end": f"{row.gpa + row.bytes:#x}",
                "size": size_name(row.tally.shift),
                "leaves": row.leaves,
                "pa": None if row.pa is None else f"{row.pa:#x}",
                "pieces": row.pieces,
                "kind": _kind(names, row.tally),
                "fields": named.show() if named.format else f"{row.tally.entry:#x}",
            }
        )
    _about(table, tree, [row.tally for row in ranges], names)
    return table


def _tree(machine: Machine, asked: Asked) -> "Tree":
    """Open the image, which stays open as long as the tree is there."""
    try:
        from kvmarch.walk.tree import Tree
    except ImportError:
        raise KvmarchError(
            "walking a whole tree needs numpy: install kvmarch[lab]"
        ) from None
    image = open_image(asked.path, asked.ram)
    return Tree(image, machine.layout, asked.root, asked.byteorder)


def _about(
    table: Table, tree: "Tree", found: "Collection[Tally]", names: Names
) -> None:
    """Note how many tables there are, and whether entries were understood.

    :raises WalkError: none was, or one of the root was not.
    """
    k, _, layout = names.machine
    strange = [row for row in found if names.of(row.entry, row.level).kind == UNKNOWN]
    for row in strange:
        if row.level == layout.levels[0].level:
            raise WalkError(
                f"the root holds {row.entry:#x}, which is no entry of {k.arch}: "
                "are root, release and options right?"
            )
    if strange and len(strange) == len(found):
        raise WalkError(
            f"no leaf of this tree is an entry of {k.arch}, such as "
            f"{strange[0].entry:#x}: are root, release and options right?"
        )
    table.notes.append(_tables(tree))
    if strange:
        table.notes.append("some entries are unknown: are release and options right?")


def _kind(names: Names, row: "Tally") -> str:
    """Return the plugin's kind; what a walk takes for more than that is said."""
    kind = names.of(row.entry, row.level).kind
    return f"{kind} ({row.role})" if kind == UNKNOWN != row.role else kind


def _tables(tree: "Tree") -> str:
    shown = ", ".join(f"{count} at level {at}" for at, count in tree.tables.items())
    return f"tables: {shown}"
