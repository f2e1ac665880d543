"""The tables of entry formats: fields of every kind, or one value decoded."""

__all__ = ["decode_table", "formats_table"]

from collections.abc import Callable, Iterator
from typing import Any

from kvmarch.arch import EntryKind
from kvmarch.blame import blaming
from kvmarch.changes import Kernel, show_release
from kvmarch.errors import EntryError, KernelError
from kvmarch.plugins import Plugins, link
from kvmarch.report.table import Column, Table
from kvmarch.scenarios.compare import Choose


def _kernel(plugins: Plugins, choose: Choose) -> tuple[Kernel, dict[str, Any]]:
    arch, release = choose.one(plugins, "entries are")
    k = link(arch, release, **choose.changes_for(arch, plugins))
    return k, arch.info.settle(release, choose.options_for(arch, plugins))


def _about(k: Kernel, options: dict[str, Any]) -> str:
    settled = " ".join(f"{name}={value}" for name, value in options.items())
    return f"{k.arch} {show_release(k.release)} {settled}"


def _blaming(
    plugins: Plugins, choose: Choose, make: Callable[[Plugins], Table]
) -> Table:
    """Make a table of one architecture; an error of its code is one line."""
    arch, _release = choose.one(plugins, "entries are")
    with blaming(arch, lambda again: make(Plugins([again], []))):
        return make(plugins)


def formats_table(plugins: Plugins, choose: Choose, level: int | None) -> Table:
    """Return the fields of every kind of entry, highest bit first.

    Levels whose kind of entry has the same fields share their rows.

    :raises PluginError: the architecture's code fails.
    """
    return _blaming(plugins, choose, lambda there: _formats(there, choose, level))


def _formats(plugins: Plugins, choose: Choose, level: int | None) -> Table:
    k, options = _kernel(plugins, choose)
    table = Table(
        _about(k, options),
        (
            Column("kind"),
            Column("levels"),
            Column("bits"),
            Column("field"),
            Column("meaning"),
        ),
    )
    kinds = list(k.formats.fn(k, options))
    for kind, levels in _grouped(kinds, level):
        for bits, name, doc in kind.format.rows():
            table.rows.append(
                {
                    "kind": kind.kind,
                    "levels": " ".join(map(str, levels)),
                    "bits": bits,
                    "field": name,
                    "meaning": doc,
                }
            )
    _refuse_level(table, kinds, level)
    return table


def _refuse_level(table: Table, kinds: list[EntryKind], level: int | None) -> None:
    if level is not None and not table.rows:
        known = ", ".join(map(str, sorted({kind.level for kind in kinds})))
        raise KernelError(f"no entries at level {level}; there is {known}")


def _grouped(
    kinds: list[EntryKind], level: int | None
) -> Iterator[tuple[EntryKind, list[int]]]:
    seen: dict[tuple[str, type], list[int]] = {}
    first: dict[tuple[str, type], EntryKind] = {}
    for kind in kinds:
        if level in {None, kind.level}:
            key = kind.kind, kind.format
            seen.setdefault(key, []).append(kind.level)
            first.setdefault(key, kind)
    for key, levels in seen.items():
        yield first[key], levels


def decode_table(
    plugins: Plugins, choose: Choose, text: str, level: int | None
) -> Table:
    """Return the fields of a value, at every level at which it is an entry.

    :raises EntryError: the text is no number, or has more bits than any entry.
    :raises PluginError: the architecture's code fails.
    """
    try:
        value = int(text, 0)
    except ValueError:
        raise EntryError(f"{text!r} is no number; wanted one such as 0x1234") from None
    return _blaming(plugins, choose, lambda there: _decode(there, choose, value, level))


def _decode(plugins: Plugins, choose: Choose, value: int, level: int | None) -> Table:
    k, options = _kernel(plugins, choose)
    kinds = list(k.formats.fn(k, options))
    width = max(kind.format.width for kind in kinds)
    if not 0 <= value < 1 << width:
        raise EntryError(
            f"{value:#x} has {value.bit_length()} bits; an entry has {width}"
        )
    table = Table(
        f"{value:#018x}: {_about(k, options)}",
        (
            Column("kind"),
            Column("levels"),
            Column("field"),
            Column("bits"),
            Column("value"),
            Column("meaning"),
        ),
    )
    levels = sorted({kind.level for kind in kinds if level in {None, kind.level}})
    found: dict[tuple[str, tuple[tuple[str, int], ...]], list[int]] = {}
    for each in levels:
        if value >> max(f.format.width for f in kinds if f.level == each):
            continue
        name, fields = k.decode.fn(k, options, value, each)
        found.setdefault((name, tuple(fields.items())), []).append(each)
    for (name, fields), at in found.items():
        shown = {"kind": name, "levels": " ".join(map(str, at))}
        fitting = [f for f in kinds if f.level == at[0] and f.kind == name]
        if not fields:
            table.rows.append(
                {**shown, "field": "", "bits": "", "value": "", "meaning": ""}
            )
        for field_name, field_value in fields:
            field = next(
                (
                    f.format.fields[field_name]
                    for f in fitting
                    if field_name in f.format.fields and f.format.accepts(value)
                ),
                None,
            )
            table.rows.append(
                {
                    **shown,
                    "field": field_name,
                    "bits": field.bits if field else "",
                    "value": field.show(field_value) if field else f"{field_value:#x}",
                    "meaning": field.doc if field else "",
                }
            )
    if not levels:
        _refuse_level(table, kinds, level)
    return table
