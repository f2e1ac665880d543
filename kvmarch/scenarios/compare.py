"""Put one scenario side by side over architectures and releases."""

__all__ = ["Choose", "compare", "meant"]

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kvmarch.blame import blaming
from kvmarch.changes import (
    COMPARED,
    RELEASES,
    Release,
    find_release,
    find_releases,
    show_release,
)
from kvmarch.errors import (
    KernelError,
    KvmarchError,
    PluginError,
    ScenarioError,
    TierError,
)
from kvmarch.plugins import Loaded, Plugins, link
from kvmarch.report.table import Column as TableColumn
from kvmarch.report.table import Table
from kvmarch.scenarios.columns import Seen, value_of
from kvmarch.scenarios.play import Played, play
from kvmarch.scenarios.records import Expect, Scenario


@dataclass(frozen=True, slots=True)
class Choose:
    """What a command was asked to look at: the shared options.

    Empty ``arch`` means every architecture; empty ``kernel`` the usual releases. A
    kernel may be a span of releases such as ``v5.4..v6.1``.
    """

    arch: tuple[str, ...] = ()
    kernel: tuple[str, ...] = ()
    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)

    def architectures(self, plugins: Plugins) -> list[Loaded]:
        """Return the architectures that are meant.

        :raises PluginError: there is none at all.
        """
        if self.arch:
            return [plugins.get(name) for name in self.arch]
        if not plugins.loaded:
            raise PluginError("no architecture is installed")
        return [plugins.loaded[name] for name in sorted(plugins.loaded)]

    def releases(self, usual: Iterable[Release] = COMPARED) -> list[Release]:
        """Return the releases that are meant."""
        if self.kernel:
            found = [each for name in self.kernel for each in find_releases(name)]
            return list(dict.fromkeys(found))
        return list(usual)

    def one(
        self, plugins: Plugins, what: str, *, any_arch: bool = False
    ) -> tuple[Loaded, Release]:
        """Return the architecture and the release that are meant, one of each.

        Without a choice the newest release is meant.

        :param what: what is of one only, for the message: ``a run is``.
        :param any_arch: without a choice the first architecture is meant.
        :raises KvmarchError: there are several, or no architecture is given.
        """
        releases = self.releases((RELEASES[-1],))
        several = len(self.arch) > 1 or len(releases) > 1
        if several or not (self.arch or any_arch):
            raise KvmarchError(f"{what} of one architecture and one release")
        return self.architectures(plugins)[0], releases[0]

    def changes_for(self, arch: Loaded, plugins: Plugins) -> Mapping[str, list[str]]:
        """Return the changes to add and take away that concern an architecture.

        A change of another architecture is left out here, but it must exist.
        """
        foreign = {
            change.name
            for other in plugins.loaded.values()
            if other is not arch
            for change in other.changes
        } - {change.name for change in arch.changes}
        return {
            "plus": [name for name in self.plus if name not in foreign],
            "minus": [name for name in self.minus if name not in foreign],
        }

    def options_for(self, arch: Loaded, plugins: Plugins) -> dict[str, str]:
        """Return the options that an architecture has.

        An option of another architecture is left out here, but some must have it;
        and where several are compared, so is a value that only another one has.
        """
        alone = len(self.arch) == 1 or len(plugins.loaded) == 1
        mine: dict[str, str] = {}
        for name, value in self.options.items():
            there = [
                a.info.options[name]
                for a in self.architectures(plugins)
                if name in a.info.options
            ]
            if name in arch.info.options:
                fits = _has(arch, name, value)
                others = any(
                    _has(a, name, value)
                    for a in self.architectures(plugins)
                    if a is not arch
                )
                if fits or alone or not others:
                    mine[name] = value
            elif not there:
                mine[name] = value
        return mine


def _has(arch: Loaded, name: str, value: str) -> bool:
    if name not in arch.info.options:
        return False
    try:
        return arch.info.parse(name, value) is not None
    except KvmarchError:
        return False


def cell(
    scenario: Scenario, arch: Loaded, release: Release, choose: Choose, plugins: Plugins
) -> tuple[Played, dict[str, Any]]:
    """Play a scenario in one cell; return the run and the settled options.

    :raises KernelError: the release does not have the architecture.
    :raises TierError: the scenario needs more than the architecture reaches.
    """
    k = link(arch, release, **choose.changes_for(arch, plugins))
    options = arch.info.settle(release, choose.options_for(arch, plugins))
    return play(scenario, k, options), options


def compare(scenario: Scenario, plugins: Plugins, choose: Choose) -> Table:
    """Return one row per architecture and release.

    :raises ScenarioError: the scenario shows nothing in comparisons.
    """
    if not scenario.columns:
        raise ScenarioError(
            f"scenario {scenario.name} has no columns to compare; run shows it"
        )
    names = [column.name for column in scenario.columns]
    table = Table(
        f"{scenario.name}: {scenario.title}",
        (
            TableColumn("arch"),
            TableColumn("kernel"),
            TableColumn("mmu"),
            *(
                TableColumn(c.name, detail=c.show == "callback")
                for c in scenario.columns
            ),
            TableColumn("note", detail=True),
        ),
        merge="kernel",
        keys=3,
    )
    for arch in choose.architectures(plugins):
        for release in choose.releases():
            table.rows.append(
                _row(scenario, arch, release, choose, plugins, names, table)
            )
    _sum_up(table)
    return table


def _sum_up(table: Table) -> None:
    """Say which cells are empty, and which expectations failed, release by release."""
    absent: dict[tuple[str, str], list[str]] = {}
    for row in table.rows:
        if row["mmu"] is None:
            absent.setdefault((row["arch"], row["note"]), []).append(row["kernel"])
    for (arch, why), releases in absent.items():
        table.notes.append(f"{arch} {_span(releases)}: {why}")
    runs: dict[tuple[str, str], list[str]] = {}
    for where, release, what in table.failed:
        runs.setdefault((where, what), []).append(release)
    for (where, what), releases in runs.items():
        table.notes.append(f"FAILED {where} {_span(releases)}: {what}")


def _span(releases: list[str]) -> str:
    return releases[0] if len(releases) == 1 else f"{releases[0]}..{releases[-1]}"


def _row(
    scenario: Scenario,
    arch: Loaded,
    release: Release,
    choose: Choose,
    plugins: Plugins,
    names: list[str],
    table: Table,
) -> dict[str, Any]:
    shown = {"arch": arch.name, "kernel": show_release(release)}
    if release < arch.info.first:
        return {
            **shown,
            "mmu": None,
            **dict.fromkeys(names),
            "note": f"not before {show_release(arch.info.first)}",
        }

    def see(arch: Loaded) -> tuple[str, dict[str, Any]]:
        return _seen(scenario, arch, release, choose, plugins)

    try:
        with blaming(arch, see):
            end, values = see(arch)
    except (KernelError, PluginError) as error:
        if isinstance(error, PluginError) and not isinstance(error, TierError):
            table.status = 2
        return {**shown, "mmu": None, **dict.fromkeys(names), "note": str(error)}
    row = {**shown, **values, "note": ""}
    if end == "cut":
        table.status = table.status if table.status == 2 else 3
        row["note"] = "cut by the bound on steps"
    for expect in scenario.expects:
        if meant(expect, row, release, choose, arch):
            for name, value in expect.values.items():
                if row[name] != value:
                    table.status = table.status if table.status == 2 else 1
                    why = f" ({expect.because})" if expect.because else ""
                    what = f"{name} is {row[name]!r}, expected {value!r}{why}"
                    table.failed.append((arch.name, show_release(release), what))
    return row


def _seen(
    scenario: Scenario, arch: Loaded, release: Release, choose: Choose, plugins: Plugins
) -> tuple[str, dict[str, Any]]:
    """Return how a run ends, and what each column shows."""
    played, options = cell(scenario, arch, release, choose, plugins)
    seen = Seen(played, options)
    row: dict[str, Any] = {"mmu": options.get("mmu", "-")}
    for column in scenario.columns:
        row[column.name] = value_of(column, seen)
    for column in scenario.columns:
        if column.show == "saved" and not played.violations:
            more = column.args["with"]
            other = replace(
                choose,
                plus=(*choose.plus, *(c for c in more if c not in choose.plus)),
                minus=tuple(c for c in choose.minus if c not in more),
            )
            baseline, settled = cell(scenario, arch, release, other, plugins)
            counted = next(c for c in scenario.columns if c.name == column.args["of"])
            there = value_of(counted, Seen(baseline, settled))
            row[column.name] = there - row[counted.name]
    return played.outcome.end, row


def meant(
    expect: Expect,
    row: Mapping[str, Any],
    release: Release,
    choose: Choose,
    arch: Loaded,
) -> bool:
    """Return whether an expectation speaks of a row of the comparison.

    :param arch: the row's, for the rules of the contract from which it deviates.
    """
    if expect.keeps and not arch.keeps(expect.keeps, release, row["mmu"]):
        return False
    return (
        expect.arch in {"", row["arch"]}
        and expect.mmu in {"", row["mmu"]}
        and (not expect.since or find_release(expect.since) <= release)
        and (not expect.until or release < find_release(expect.until))
        and set(expect.plus) == set(choose.plus)
        and set(expect.minus) == set(choose.minus)
    )
