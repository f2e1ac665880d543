"""A schedule followed step by step, and what was seen on the way."""

__all__ = ["Replayed", "check_property", "replay", "shortened", "trace_of"]

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvmarch.changes import show_release
from kvmarch.errors import ExploreError, ModelError, UnknownNameError
from kvmarch.explore.endless import Endless, Round, moves_of
from kvmarch.explore.schedule import Schedule
from kvmarch.explore.shorten import shorten
from kvmarch.machine.world import Event, Violation
from kvmarch.plugins import Plugins, link
from kvmarch.report.trace import Loss, Move, Trace
from kvmarch.scenarios.cells import Cell
from kvmarch.scenarios.play import Played, play_along
from kvmarch.scenarios.program import FIXED
from kvmarch.scenarios.properties import ALWAYS_ON
from kvmarch.scenarios.records import Scenario
from kvmarch.scenarios.states import States
from kvmarch.scenarios.verbs import Context


@dataclass(frozen=True, slots=True)
class Replayed:
    """A schedule that was run step by step.

    :param moves: its steps, each with what it showed; of a cycle, once around.
    :param rest: what was lost before the first step or after the last one.
    :param round: what going round once has shown, if it goes round.
    """

    cell: Cell
    schedule: Schedule
    played: Played
    moves: list[Move]
    rest: list[Violation]
    round: Round | None = None

    @property
    def violations(self) -> list[Violation]:
        """Return what was lost on the way, or is by going on so."""
        lost = self.round.lost if self.round is not None else ()
        return [*self.played.violations, *lost]


class _Recorder:
    """Writes down each step, what it showed, and what it changed."""

    def __init__(
        self,
        watch: tuple[int, ...],
        *,
        states: bool,
        each: Callable[[States], None] | None,
    ) -> None:
        self.watch = watch
        self.wants_states = states or each is not None
        self.each = each
        self.moves: list[Move] = []
        self.first = self.seen = 0

    def begin(self, context: Context) -> Any:
        """Take the machine before its first step; return the observer of its steps."""
        self.world = context.machine.world
        self.states = States(context, FIXED, self.watch) if self.wants_states else None
        self.first = self.seen = len(self.world.violations)
        self.events = len(self.world.events)
        if self.each is not None and self.states is not None:
            self.each(self.states)
        return self.look

    def look(self, task: Any, step: Any) -> None:
        """Write down the step that was just taken."""
        world = self.world
        events, lost = world.events[self.events :], world.violations[self.seen :]
        self.events, self.seen = len(world.events), len(world.violations)
        changes = self.states.look() if self.states is not None else []
        if self.each is not None and self.states is not None:
            self.each(self.states)
        name = step.op.name
        self.moves.append(
            Move(
                len(self.moves) + 1,
                task.name,
                "" if name in {"begin", "end"} else name,
                _datum(events, "step", "text"),
                _datum(events, "result", "value"),
                tuple(changes),
                tuple(Loss(v.property, v.sentence) for v in lost),
            )
        )


def _datum(events: list[Event], name: str, key: str) -> str:
    value: Any = next((e.data[key] for e in events if e.name == name), "")
    return f"{value:#x}" if type(value) is int and value > 9 else str(value)


def replay(
    cell: Cell,
    schedule: Schedule,
    plugins: Plugins,
    *,
    states: bool = False,
    each: Callable[[States], None] | None = None,
) -> Replayed:
    """Run a schedule step by step, and stop where it ends.

    One with a cycle is run once around: everything must be as it was before.

    :param states: look after each step at what it has changed.
    :param each: called with the states before the first step and after each one.
    :raises ExploreError: it asks for steps that cannot be taken, or its cycle does not
        come back.
    """
    k = link(cell.arch, cell.release, **cell.choose.changes_for(cell.arch, plugins))
    options = cell.arch.info.settle(
        cell.release, cell.choose.options_for(cell.arch, plugins)
    )
    recorder = _Recorder(cell.scenario.watch, states=states, each=each)
    try:
        turns = (*schedule.turns, *schedule.cycle)
        played = play_along(cell.scenario, k, options, turns, recorder.begin)
    except ModelError as error:
        raise ExploreError(str(error)) from None
    lost = played.violations
    rest = [*lost[: recorder.first], *lost[recorder.seen :]]
    round_ = _round(cell, schedule, plugins) if schedule.cycle else None
    return Replayed(cell, schedule, played, recorder.moves, rest, round_)


def _round(cell: Cell, schedule: Schedule, plugins: Plugins) -> Round:
    """Check that a schedule's cycle comes back to where it began.

    :raises ExploreError: it does not.
    """
    first, cycle = (
        moves_of(schedule.tasks, turns) for turns in (schedule.turns, schedule.cycle)
    )
    with Endless.of(cell.program(plugins)) as endless:
        found = endless.round(first, cycle)
    if found.differs:
        raise ExploreError(
            f"the cycle of {schedule} does not come back to where it began; what "
            f"differs: {found.differs}"
        )
    return found


def trace_of(replayed: Replayed) -> Trace:
    """Return what was seen as a trace, to be rendered."""
    cell = replayed.cell
    title = f"{cell.scenario.title}: {cell.arch.name} {show_release(cell.release)}"
    if cell.changes:
        title += f" {cell.changes}"
    schedule, lost, notes = replayed.schedule, list(replayed.rest), []
    if replayed.round is not None:
        lost += replayed.round.lost
        first = schedule.steps + 1
        notes.append(
            f"after step {schedule.steps + schedule.around} everything is as it was "
            f"before step {first}: from here again, {schedule.around} steps for ever"
        )
        if replayed.round.able:
            able = ", ".join(replayed.round.able)
            notes.append(
                f"no fair schedule goes on so: {able} could move at each of these steps"
            )
    return Trace(
        title,
        schedule.tasks,
        str(schedule),
        replayed.moves,
        [f"schedule {schedule}", *notes],
        [Loss(v.property, v.sentence) for v in lost],
        cycle=schedule.steps + 1 if schedule.cycle else 0,
    )


def check_property(scenario: Scenario, wanted: str) -> None:
    """Refuse the name of a property that there is not; no name is none.

    :raises UnknownNameError: nothing answers to it.
    """
    known = [*(property_.id for property_ in ALWAYS_ON), *scenario.bad]
    if wanted and wanted not in known:
        raise UnknownNameError("property", wanted, known)


def shortened(
    cell: Cell, schedule: Schedule, plugins: Plugins, wanted: str = ""
) -> Trace:
    """Return a shorter schedule that loses the same property, followed.

    :param wanted: the property; the one that is lost last if it is empty.
    :raises ExploreError: the schedule does not lose it, or cannot be followed.
    """
    check_property(cell.scenario, wanted)
    program = cell.program(plugins)
    shorter, lost = shorten(program, schedule, wanted, always=program.asks_always)
    trace = trace_of(replay(cell, shorter, plugins))
    trace.notes.append(
        f"shortened from {_size(schedule)} to {_size(shorter)}, which lose {lost} too"
    )
    return trace


def _size(schedule: Schedule) -> str:
    size = f"{schedule.steps} steps in {len(schedule.turns)} turns"
    if schedule.cycle:
        size += f" and {schedule.around} in {len(schedule.cycle)} for ever"
    return size
