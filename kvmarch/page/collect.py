"""Everything that a page shows, as plain data."""

__all__ = ["Collected", "chosen_scenarios", "collect"]

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kvmarch.changes import find_release, show_release
from kvmarch.errors import ExploreError, ScenarioError, UnknownNameError
from kvmarch.page.formats import formats_data
from kvmarch.page.pack import Packer
from kvmarch.page.state import GROUPS
from kvmarch.page.work import Job, do_job, jobs_of, try_job
from kvmarch.plugins import Plugins
from kvmarch.scenarios.cells import How
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.exploring import find_cell
from kvmarch.scenarios.file import find, library, load
from kvmarch.scenarios.parallel import in_processes
from kvmarch.scenarios.posts import POSTS
from kvmarch.scenarios.properties import ALWAYS_ON, ASKED
from kvmarch.scenarios.records import Scenario

_MOMENTS = dict(zip(ASKED, ("after each step", "at the end"), strict=True))
"""Words for when a scenario's own property is asked."""


@dataclass(slots=True)
class Collected:
    """The data of a page, and what is to be said about it.

    :param status: as of a command: 2 if a plugin failed, otherwise 1 if an expectation
        did, otherwise 3 if a search was cut.
    """

    data: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    status: int = 0


def chosen_scenarios(names: Iterable[str], plugins: Plugins) -> list[Scenario]:
    """Return the scenarios of these names or files.

    Without names: those that need one schedule only, also those that plugins bring,
    and the races of the five posts.

    :raises ScenarioError: two of them have the same name.
    """
    folders = plugins.scenario_folders()
    given = list(names)
    if given:
        chosen: dict[str, Scenario] = {}
        for name in dict.fromkeys(given):
            scenario = load(find(name, folders))
            if scenario.name in chosen:
                raise ScenarioError(f"{name}: there is another {scenario.name}")
            chosen[scenario.name] = scenario
        return list(chosen.values())
    paths = dict(library())
    for folder in folders:
        for path in sorted(Path(folder).glob("*.toml")):
            paths.setdefault(path.stem, path)
    every = [load(path) for path in paths.values()]
    return [
        scenario
        for scenario in every
        if (not scenario.verdicts and scenario.bug is None)
        or set(scenario.tags) & POSTS.keys()
    ]


def collect(
    scenarios: Iterable[Scenario],
    plugins: Plugins,
    choose: Choose,
    how: How,
    *,
    jobs: int = 1,
    schedules: Iterable[str] = (),
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Collected:
    """Return what a page shows of some scenarios.

    :param jobs: processes that share the work; the data are the same for any number.
    :param schedules: more schedules to follow, of these scenarios, as they are printed.
    :param progress: called with the pieces of work that are done, and all.
    :raises KvmarchError: something cannot be computed.
    """
    chosen = list(scenarios)
    choose = _in_order(choose)
    packer = Packer()
    work = [
        job for scenario in chosen for job in jobs_of(scenario, plugins, choose, how)
    ]
    work += [
        _follow(text, chosen, plugins, choose, how) for text in dict.fromkeys(schedules)
    ]
    done: dict[int, dict[str, Any]] = {}
    for number, result in _results(work, plugins, jobs):
        done[number] = result
        progress(len(done), len(work))
    out = Collected({})
    statuses: set[int] = set()
    noted: dict[str, bool] = {}
    """What is to be said, once each, and whether it is a failure."""
    shown = {scenario.name: _about(scenario) for scenario in chosen}
    for number, job in enumerate(work):
        result = done.pop(number)
        about = shown[job.scenario.name]
        if "comparison" in result:
            about["comparison"] = result["comparison"]
        if "cell" in result:
            about["cells"].append(result["cell"])
        for trace in result["traces"]:
            packer.add(trace)
        status = result.get("status", 0)
        statuses.add(status)
        for note in result.get("notes", ()):
            said = f"{job.scenario.name}@" in note
            text = note if said else f"{job.scenario.name}: {note}"
            noted.setdefault(text, status in {1, 2})
    formats = formats_data(plugins, choose)
    if formats["failed"]:
        noted.update(dict.fromkeys(formats["failed"], True))
        statuses.add(2)
    out.notes = list(noted)
    # What weighs most comes first: a plugin that fails, an expectation, a cut.
    out.status = next((status for status in (2, 1, 3) if status in statuses), 0)
    out.data = {
        "version": version("kvmarch"),
        "releases": [show_release(release) for release in choose.releases()],
        "archs": [_arch(arch) for arch in choose.architectures(plugins)],
        "posts": dict(POSTS),
        "properties": {p.id: [p.sentence, p.source] for p in ALWAYS_ON},
        "scenarios": list(shown.values()),
        "formats": formats,
        "groups": list(GROUPS),
        "traces": packer.traces,
        "texts": packer.texts,
        "notes": [
            *([refused.why, True] for refused in plugins.refused),
            *([text, failed] for text, failed in noted.items()),
        ],
    }
    return out


def _in_order(choose: Choose) -> Choose:
    """Return what was chosen, once each, and releases as time goes."""
    releases = sorted(set(map(find_release, choose.kernel)))
    return replace(
        choose,
        arch=tuple(dict.fromkeys(choose.arch)),
        kernel=tuple(map(show_release, releases)),
    )


def _results(
    work: list[Job], plugins: Plugins, jobs: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    if jobs == 1:
        for number, job in enumerate(work):
            yield number, do_job(job, plugins)
        return
    for number, result in in_processes(try_job, work, jobs):
        if "error" in result:
            raise ExploreError(result["error"])
        yield number, result


def _follow(
    text: str, scenarios: list[Scenario], plugins: Plugins, choose: Choose, how: How
) -> Job:
    """Return the work of following a schedule that was printed."""
    name = text.partition("@")[0]
    scenario = next((each for each in scenarios if each.name == name), None)
    if scenario is None:
        known = [each.name for each in scenarios]
        raise UnknownNameError("scenario of a schedule on this page", name, known)
    cell = find_cell(text, plugins, choose, scenario)
    return Job(scenario, cell.choose, how, cell.arch.name, cell.release, text)


def _arch(arch: Any) -> dict[str, Any]:
    return {
        "name": arch.name,
        "title": arch.info.title,
        "distribution": f"{arch.distribution} {arch.version}",
        "tier": arch.tier,
    }


def _about(scenario: Scenario) -> dict[str, Any]:
    """Return what a scenario says of itself."""
    return {
        "name": scenario.name,
        "title": scenario.title,
        "source": scenario.source,
        "tags": list(scenario.tags),
        "setup": [line.text for line in scenario.setup],
        "tasks": [
            [task.name, [line.text for line in task.steps]] for task in scenario.tasks
        ],
        "bad": {
            name: [_MOMENTS[when], what] for name, (when, what) in scenario.bad.items()
        },
        "comparison": None,
        "cells": [],
    }
