"""Play a scenario: one schedule through the model, with all that can be seen."""

__all__ = [
    "Played",
    "check_dirty_logs",
    "play",
    "play_along",
    "ranges_of",
    "run_setup",
    "set_up",
    "tasks_of",
]

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from kvmarch.changes import Kernel
from kvmarch.kernel.boot import Machine, boot
from kvmarch.kernel.checks import check_logged
from kvmarch.kernel.dirty_log import get_dirty_log
from kvmarch.kernel.mmap import populate
from kvmarch.machine.host import PFN_SHIFT, Vma
from kvmarch.machine.run import Outcome, Task, run, run_along, run_path
from kvmarch.machine.steps import Path, op
from kvmarch.machine.world import Event, Violation
from kvmarch.scenarios import properties
from kvmarch.scenarios.records import FIRST_HVA, Memory, Scenario, StepLine
from kvmarch.scenarios.verbs import (
    Context,
    check_own_verbs,
    find_verb,
    make_gpcs,
    values,
)

Observer = Callable[[Any, Any], None]
"""Called after each step with its task and the step."""


@dataclass(frozen=True, slots=True)
class Played:
    """What one run showed.

    :param results: by scenario line (task, number), what its verb returned.
    """

    scenario: Scenario
    machine: Machine
    outcome: Outcome
    results: Mapping[tuple[str, int], Any]

    @property
    def events(self) -> list[Event]:
        """Return everything that steps made visible, in order."""
        return self.machine.world.events

    @property
    def violations(self) -> list[Violation]:
        """Return the properties that were lost, in order."""
        return self.machine.world.violations


def set_up(
    scenario: Scenario, k: Kernel, options: Mapping[str, Any], **boot_options: Any
) -> Context:
    """Return a machine with the scenario's memory, before its first step.

    :raises ScenarioError: a line is of another architecture, or of none.
    """
    check_own_verbs(scenario, k)
    machine = boot(k, options, vcpus=scenario.vcpus, **boot_options)
    for _ in range(scenario.vms - 1):
        machine.create_vm(options, vcpus=scenario.vcpus)
    mm = machine.mm
    memory: dict[str, tuple[int, int]] = {}
    places = ranges_of(scenario, 1 << mm.page_shift)
    for row, place in zip(scenario.memory, places, strict=True):
        base, size = place.start, len(place)
        memory[row.name] = (base, size)
        huge = row.huge or row.hugetlb
        how = {"mergeable": row.mergeable, "hugetlb": row.hugetlb}
        mm.add_vma(Vma(base, base + size, huge=huge, **how))
        if row.touched:
            populate(mm, base, base + size, huge=huge)
            _fill(machine, row, base)
    info = k.arch_info
    context = Context(machine, memory, scenario.code, info.leaves_by)
    lines = (*scenario.setup, *(line for task in scenario.tasks for line in task.steps))
    make_gpcs(context, lines)
    mm.prepare_children(sum(line.verb == "fork" for line in lines))
    return context


def ranges_of(scenario: Scenario, page_size: int) -> list[range]:
    """Return where each memory of a scenario is mapped, as addresses in bytes."""
    places = []
    base = FIRST_HVA
    for row in scenario.memory:
        size = row.size(page_size)
        places.append(range(base, base + size))
        base += -(-size >> 30) + 1 << 30
    return places


def run_setup(scenario: Scenario, context: Context) -> None:
    """Run what comes before the tasks, one line after the other."""
    if scenario.setup:
        path = task_path(context, {}, "setup", scenario.setup)
        run_path(context.machine.world, path, "setup")


def _fill(machine: Machine, row: Memory, base: int) -> None:
    """Give the first pages the contents that the scenario states."""
    mm = machine.mm
    vpn = base >> mm.page_shift
    for offset, content in enumerate(row.contents):
        machine.host.pages[mm.pte(vpn + offset) >> PFN_SHIFT].content = content


@op(name="begin")
def _begin(context: Context, task: str, number: int, line: StepLine) -> None:
    context.machine.world.note("step", number=number, text=line.text)


@op(name="end")
def _end(
    context: Context, results: dict[tuple[str, int], Any], number: int, value: Any
) -> None:
    world = context.machine.world
    task = world.current.name
    results[task, number] = value
    for vm in context.machine.vms:
        vm.ledger.settle(f"return from {task} step {number}")
    if value is not None:
        world.note("result", number=number, value=value)


def _path_of(context: Context, line: StepLine) -> Path[Any]:
    """Return the kernel path that a line runs."""
    verb = find_verb(context.machine.vm.k, line.verb)
    return verb.make(context, values(verb, line.args))


async def task_path(
    context: Context,
    results: dict[tuple[str, int], Any],
    name: str,
    lines: tuple[StepLine, ...],
) -> None:
    for number, line in enumerate(lines):
        await _begin(context, name, number, line)
        value = await _path_of(context, line)
        await _end(context, results, number, value)


class _Watcher:
    """Follows the entries of some gfns and records each change as an event."""

    def __init__(self, context: Context, gfns: Iterable[int]) -> None:
        self.vm = context.machine.vm
        self.world = context.machine.world
        self.seen = {gfn: self.vm.k.entry.fn(self.vm, gfn) for gfn in gfns}
        for gfn, (entry, level) in self.seen.items():
            self.world.note("watch", gfn=gfn, new=entry, level=level)

    def look(self) -> None:
        """Record what has changed since the last look."""
        for gfn, before in self.seen.items():
            now = self.vm.k.entry.fn(self.vm, gfn)
            if now != before:
                self.seen[gfn] = now
                self.world.note(
                    "entry",
                    gfn=gfn,
                    old=before[0],
                    new=now[0],
                    old_level=before[1],
                    level=now[1],
                )


def check_dirty_logs(context: Context) -> None:
    """Fetch every dirty log once more: what was written must be in one of them."""
    machine = context.machine
    if machine.mm.mm_users == 0:
        return
    for vm in machine.vms:
        if not vm.users_count:
            continue
        for slot in [slot for memslots in vm.memslots for slot in memslots.slots]:
            if slot.bitmap and vm.logging.get(slot.bitmap):
                number = slot.as_id << 16 | slot.id
                final = get_dirty_log(vm, number)
                errno, _bits = run_path(machine.world, final, "final log")
                if not errno:
                    check_logged(vm, slot)


def play(
    scenario: Scenario,
    k: Kernel,
    options: Mapping[str, Any],
    *,
    bound: int | None = None,
    each_step: bool = False,
) -> Played:
    """Run a scenario along its schedule.

    :param options: every option of the architecture, see ``ArchInfo.settle``.
    :param bound: steps after which the run is cut.
    :param each_step: record every step as an event.
    """
    context = set_up(scenario, k, options)
    run_setup(scenario, context)
    results: dict[tuple[str, int], Any] = {}
    tasks = tasks_of(scenario, context, results)
    _observe(scenario, context, each_step)
    bounds = {} if bound is None else {"bound": bound}
    outcome = run(context.machine.world, tasks, scenario.schedule, **bounds)
    _check_end(scenario, context, outcome)
    return Played(scenario, context.machine, outcome, results)


def play_along(
    scenario: Scenario,
    k: Kernel,
    options: Mapping[str, Any],
    turns: tuple[tuple[str, int], ...],
    look: Callable[[Context], Observer] | None = None,
) -> Played:
    """Run a scenario along a schedule, step by step, and stop where it ends.

    :param turns: pairs of task name and number of steps.
    :param look: gets the machine before the first step, and returns what is called
        after each one, when its properties have been asked.
    :raises ModelError: a turn asks for steps that its task cannot take.
    """
    context = set_up(scenario, k, options)
    run_setup(scenario, context)
    results: dict[tuple[str, int], Any] = {}
    tasks = tasks_of(scenario, context, results)
    _observe(scenario, context, each_step=True, then=look and look(context))
    outcome = run_along(context.machine.world, tasks, turns)
    if outcome.end != "open":
        _check_end(scenario, context, outcome)
    return Played(scenario, context.machine, outcome, results)


def tasks_of(
    scenario: Scenario, context: Context, results: dict[tuple[str, int], Any]
) -> list[Task]:
    """Return the scenario's tasks, not begun.

    :param results: takes, by task and number of the line, what each verb returned.
    """
    return [
        Task(
            lines.name,
            partial(task_path, context, results, lines.name, lines.steps),
        )
        for lines in scenario.tasks
    ]


def _observe(
    scenario: Scenario,
    context: Context,
    each_step: bool,
    then: Observer | None = None,
) -> None:
    """Let the machine's observer record what the caller wants to see."""
    world = context.machine.world
    watcher = _Watcher(context, scenario.watch) if scenario.watch else None
    always = properties.compiled(scenario, "always")

    def observe(task: Any, step: Any) -> None:
        if each_step:
            world.note("micro", step=step.op.name)
        if watcher is not None:
            watcher.look()
        if always:
            properties.check(always, context)
        if then is not None:
            then(task, step)

    if each_step or watcher is not None or always:
        world.observer = observe


def _check_end(scenario: Scenario, context: Context, outcome: Outcome) -> None:
    """Ask what is asked when no task can move any more."""
    context.machine.world.observer = None
    properties.check(properties.compiled(scenario, "at-rest"), context)
    if outcome.end == "done":
        check_dirty_logs(context)
