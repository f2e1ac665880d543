"""What a sweep consists of: its cells, and what tells it from another sweep."""

__all__ = ["Plan", "model_of", "plan_of"]

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kvmarch.errors import KernelError, SweepError, UnknownNameError
from kvmarch.plugins import Plugins, all_changes, link
from kvmarch.scenarios.cells import Cell, How, expected_at
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.parallel import Work, works_of
from kvmarch.scenarios.records import Scenario

NO_MODEL = {"cli", "recordings", "report", "sweep"}
"""Parts of kvmarch on which no verdict depends."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A sweep before it begins.

    :param places: by cell, what its schedules call it; no two are alike.
    :param definition: what must be the same when the sweep is resumed, by name.
    """

    works: tuple[Work, ...]
    places: tuple[str, ...]
    definition: Mapping[str, str]


def plan_of(
    scenarios: Sequence[Scenario],
    plugins: Plugins,
    choose: Choose,
    toggled: Sequence[str] = (),
    how: How | None = None,
) -> Plan:
    """Return the cells of scenarios x architectures x releases x changes.

    :param toggled: changes; every cell is there also with each of them the other way
        round: taken away where the kernel has it, added where not.
    :raises SweepError: there is no cell at all, or two have one name.
    :raises UnknownNameError: there is no such release, change or architecture.
    """
    known = {change.name for change in all_changes(plugins)}
    for name in (*toggled, *choose.plus, *choose.minus):
        if name not in known:
            raise UnknownNameError("change", name, sorted(known))
    works: dict[str, Work] = {}
    of: dict[str, Scenario] = {}
    for work in works_of(scenarios, plugins, choose, how):
        if of.setdefault(work.scenario.name, work.scenario) is not work.scenario:
            raise SweepError(f"two scenarios are named {work.scenario.name}")
        if work.release >= plugins.get(work.arch).info.first:
            for each in (work, *_others(work, toggled, plugins)):
                works.setdefault(each.cell(plugins).where, each)
    if not works:
        raise SweepError("nothing to sweep: no such kernel has such an architecture")
    definition = {
        "kvmarch": importlib.metadata.version("kvmarch"),
        "the model": model_of(plugins),
        **{f"scenario {name}": _digest(repr(one)) for name, one in of.items()},
        "the search": _told(how or How()),
        "the cells": _digest("\n".join(works)),
    }
    return Plan(tuple(works.values()), tuple(works), definition)


def _others(work: Work, toggled: Iterable[str], plugins: Plugins) -> Iterator[Work]:
    """Yield a cell with each change the other way round, where that is a kernel."""
    arch = plugins.get(work.arch)

    def applied(choose: Choose) -> frozenset[str]:
        changes = choose.changes_for(arch, plugins)
        return link(arch, work.release, **changes).applied

    for name in toggled:
        plus = tuple(other for other in work.choose.plus if other != name)
        minus = tuple(other for other in work.choose.minus if other != name)
        try:
            here = applied(work.choose)
            if name in here:
                minus = (*minus, name)
            else:
                plus = (*plus, name)
            choose = replace(work.choose, plus=plus, minus=minus)
            if applied(choose) == here:
                # The change concerns another architecture.
                continue
        except KernelError:
            continue
        cell = Cell(work.scenario, arch, work.release, choose)
        expected = expected_at(work.scenario, cell)
        yield replace(work, choose=choose, expected=expected)


def _told(how: How) -> str:
    return ", ".join(f"{name} {value}" for name, value in asdict(how).items())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def model_of(plugins: Plugins) -> str:
    """Return a digest of all source that a verdict may depend on.

    Two processes, or two days, with the same digest give the same verdicts.
    """
    files = {
        name: path
        for name, path in _source("kvmarch")
        if name.split("/")[1].removesuffix(".py") not in NO_MODEL
    }
    for arch in plugins.loaded.values():
        files |= _source(arch.operations["arch"].__module__.partition(".")[0])
    sum_of_all = hashlib.sha256()
    for name in sorted(files):
        sum_of_all.update(f"{name}\0".encode())
        sum_of_all.update(hashlib.sha256(files[name].read_bytes()).digest())
    return sum_of_all.hexdigest()[:16]


def _source(package: str) -> Iterator[tuple[str, Path]]:
    """Yield the modules of a package, each with its name; or the one that it is."""
    spec = importlib.util.find_spec(package)
    folders = (spec and spec.submodule_search_locations) or ()
    for folder in folders:
        for path in Path(folder).rglob("*.py"):
            yield f"{package}/{path.relative_to(folder)}", path
    if spec and spec.origin and not folders:
        yield package, Path(spec.origin)
