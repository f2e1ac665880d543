"""The table that ``kvmarch run`` prints: one column per task, entries decoded."""

__all__ = ["run_table"]

from collections import Counter
from typing import Any

from kvmarch.blame import blaming
from kvmarch.changes import show_release
from kvmarch.kernel.boot import Machine
from kvmarch.machine.world import Event
from kvmarch.plugins import Loaded, Plugins, link
from kvmarch.report.table import Column, Table
from kvmarch.scenarios.columns import Seen
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.play import Played, play
from kvmarch.scenarios.properties import ALWAYS_ON
from kvmarch.scenarios.records import Scenario


def run_table(
    scenario: Scenario,
    plugins: Plugins,
    choose: Choose,
    *,
    each_step: bool = False,
    bound: int | None = None,
) -> Table:
    """Run a scenario once and return what happened, in order.

    Without a choice the first architecture and the newest release are meant.

    :param each_step: show every atomic step.
    """
    arch, release = choose.one(plugins, "a run is", any_arch=True)
    options = arch.info.settle(release, choose.options_for(arch, plugins))
    changes = choose.changes_for(arch, plugins)

    def run(arch: Loaded) -> Played:
        k = link(arch, release, **changes)
        return play(scenario, k, options, bound=bound, each_step=each_step)

    with blaming(arch, run):
        played = run(arch)
    seen = Seen(played, options)
    names = [task.name for task in scenario.tasks]
    settled = " ".join(f"{name}={value}" for name, value in options.items())
    table = Table(
        f"{scenario.name} on {arch.name} {show_release(release)} ({settled})",
        (Column("step"), *(Column(name) for name in names)),
    )
    for event in played.events:
        text = _show(event, seen)
        if text and event.task in names:
            table.rows.append({"step": event.step, event.task: text})
    for row in table.rows:
        for name in names:
            row.setdefault(name, "")  # type: ignore[attr-defined]
    _close(table, played, names)
    return table


def _exits(machine: Machine) -> Counter[str]:
    """Return how often guests were left, by reason."""
    every: Counter[str] = Counter()
    for vm in machine.vms:
        for vcpu in vm.vcpus:
            every.update(vcpu.exits)
    return every


def _close(table: Table, played: Any, names: list[str]) -> None:
    turns = " ".join(f"{name}x{count}" for name, count in played.outcome.schedule)
    table.notes.append(f"{played.outcome.steps} steps, schedule {turns}")
    exits = dict(sorted(_exits(played.machine).items()))
    if exits:
        table.notes.append(
            "exits: "
            + ", ".join(f"{reason} {count}" for reason, count in exits.items())
        )
    for violation in played.violations:
        table.notes.append(
            f"LOST {violation.property} ({violation.task}): {violation.sentence}"
        )
    lost = {violation.property for violation in played.violations}
    table.notes.extend(
        f"{known.id}: {known.sentence} ({known.source})"
        for known in ALWAYS_ON
        if known.id in lost
    )
    if not played.violations:
        table.notes.append("no property was lost")
    if played.violations:
        table.status = 1
    if played.outcome.end == "cut":
        table.notes.append("the run was cut by its bound")
        table.status = 3


def _show(event: Event, seen: Seen) -> str:
    """Return an event as one line; empty for those that are only bookkeeping."""
    data = event.data
    match event.name:
        case "step":
            return f"> {data['text']}"
        case "micro":
            return f"  . {data['step']}"
        case "entry":
            return _entry(data, seen)
        case "result":
            return f"  = {_value(data['value'])}"
        case "look" | "mark" | "watch" | "range_start_done":
            return ""
        case _:
            alone = len(seen.played.machine.vms) == 1
            shown = " ".join(
                f"{k}={_value(v)}" for k, v in data.items() if k != "vm" or not alone
            )
            return f"  {event.name} {shown}"


def _entry(data: dict[str, Any], seen: Seen) -> str:
    def decoded(entry: int, level: int) -> str:
        kind, fields = seen.k.decode.fn(seen.k, seen.options, entry, level)
        found = seen.kinds.get((level, kind))
        text = ""
        if found is not None and found.format.accepts(entry):
            text = found.format.show(entry)
        else:
            text = " ".join(f"{n}={v:#x}" for n, v in fields.items() if v)
        return f"{entry:#x} {kind}{f' ({text})' if text else ''}"

    old = decoded(data["old"], data["old_level"])
    return (
        f"  gfn {data['gfn']:#x}: {old}\n     -> {decoded(data['new'], data['level'])}"
    )


def _value(value: Any) -> str:
    if type(value) is int:
        return f"{value:#x}" if value > 9 else str(value)
    if isinstance(value, tuple):
        return "(" + ", ".join(_value(v) for v in value) + ")"
    return str(value)
