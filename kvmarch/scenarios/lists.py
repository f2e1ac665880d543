"""The tables of what there is: scenarios, kernels and changes, plugins."""

__all__ = [
    "changes_table",
    "comparable",
    "diff_table",
    "plugins_table",
    "scenarios_table",
]

from collections.abc import Iterator

from kvmarch.changes import RELEASES, Choice, find_release, show_release
from kvmarch.kernel.table import CHANGES, CHOICES
from kvmarch.plugins import Plugins, link
from kvmarch.report.table import Column, Table
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.file import load_all
from kvmarch.scenarios.records import Scenario


def _scenarios(plugins: Plugins, table: Table) -> Iterator[Scenario]:
    """Yield every scenario; a file that is none is told in the table."""

    def complain(why: str) -> None:
        table.notes.append(why)
        table.status = 2

    yield from load_all(plugins.scenario_folders(), complain).values()


def scenarios_table(plugins: Plugins) -> Table:
    """Return every scenario that can be named."""
    table = Table(
        "",
        (Column("scenario"), Column("title"), Column("tags", detail=True)),
        notes=["kvmarch compare SCENARIO, kvmarch run SCENARIO"],
    )
    for scenario in _scenarios(plugins, table):
        table.rows.append(
            {
                "scenario": scenario.name,
                "title": scenario.title,
                "tags": " ".join(scenario.tags),
            }
        )
    return table


def comparable(plugins: Plugins) -> Table:
    """Return the scenarios that a comparison can show, with what it would show."""
    table = Table(
        "Name a scenario, for example: kvmarch compare change_pte --kernel v6.1,v6.12",
        (Column("scenario"), Column("title"), Column("columns", detail=True)),
        notes=["Without --arch all are compared, without --kernel the usual releases."],
    )
    for scenario in _scenarios(plugins, table):
        if scenario.columns:
            table.rows.append(
                {
                    "scenario": scenario.name,
                    "title": scenario.title,
                    "columns": " ".join(c.name for c in scenario.columns),
                }
            )
    return table


def changes_table(plugins: Plugins, choose: Choose) -> Table:
    """Return the table of changes, oldest first."""
    table = Table(
        f"Changes; releases are {show_release(RELEASES[0])} to "
        f"{show_release(RELEASES[-1])}",
        (
            Column("change"),
            Column("arch"),
            Column("since"),
            Column("until", detail=True),
            Column("commit", detail=True),
            Column("subject"),
            Column("source", detail=True),
        ),
    )
    changes = [] if choose.arch else list(CHANGES)
    for arch in choose.architectures(plugins):
        changes.extend(arch.changes)
    for change in sorted(changes, key=lambda c: (c.since or (99, 0), c.arch, c.name)):
        table.rows.append(
            {
                "change": change.name,
                "arch": change.arch or "all",
                "since": show_release(change.since) if change.since else "not merged",
                "until": show_release(change.until) if change.until else "",
                "commit": change.commit,
                "subject": change.subject,
                "source": change.source,
            }
        )
    return table


def diff_table(plugins: Plugins, choose: Choose, old: str, new: str) -> Table:
    """Return the steps whose body differs between two releases."""
    before, after = find_release(old), find_release(new)
    table = Table(
        f"What differs between {show_release(before)} and {show_release(after)}",
        (Column("arch"), Column("step"), Column("decides"), Column("because of")),
    )
    generic_done = False
    for arch in choose.architectures(plugins):
        if min(before, after) < arch.info.first:
            table.notes.append(
                f"{arch.name}: modelled from {show_release(arch.info.first)} on"
            )
            continue
        one, other = link(arch, before), link(arch, after)
        core = {choice.name: choice for choice in CHOICES}
        own = {
            choice.name: core[choice.name].joined(choice)
            if choice.name in core
            else choice
            for choice in arch.choices
        }
        differing = one.applied ^ other.applied
        groups: list[tuple[str, tuple[Choice, ...]]] = [
            (arch.name, tuple(own.values()))
        ]
        if not generic_done:
            generic = tuple(c for c in CHOICES if c.name not in own)
            groups.insert(0, ("all", generic))
            generic_done = True
        for name, choices in groups:
            for choice in choices:
                if choice.pick(one.applied) is not choice.pick(other.applied):
                    needs = {n for v in choice.variants for n in v.needs} & differing
                    table.rows.append(
                        {
                            "arch": name,
                            "step": choice.name,
                            "decides": choice.doc,
                            "because of": ", ".join(sorted(needs)),
                        }
                    )
    if not table.rows:
        table.notes.append("nothing that the model knows of")
    return table


def plugins_table(plugins: Plugins) -> Table:
    """Return every plugin that an entry point names."""
    table = Table(
        "",
        (
            Column("name"),
            Column("title", detail=True),
            Column("version"),
            Column("distribution"),
            Column("tier"),
            Column("status"),
        ),
    )
    for arch in plugins.loaded.values():
        table.rows.append(
            {
                "name": arch.name,
                "title": arch.info.title,
                "version": arch.version,
                "distribution": arch.distribution,
                "tier": arch.tier,
                "status": "ok",
            }
        )
    for refused in plugins.refused:
        table.rows.append(
            {
                "name": refused.name,
                "title": "",
                "version": "",
                "distribution": refused.distribution,
                "tier": 0,
                "status": f"refused: {refused.why}",
            }
        )
    return table
