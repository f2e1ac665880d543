"""What ``kvmarch lab fuzz`` does: two sides, their differences, what is kept."""

__all__ = ["Asked", "fuzz_kernel", "fuzz_models"]

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvmarch.changes import RELEASES, Release, find_release, show_release
from kvmarch.errors import LabError, UnknownNameError
from kvmarch.lab.fuzz.compare import Comparer
from kvmarch.lab.fuzz.generate import Program, Shape
from kvmarch.lab.fuzz.model import ModelSide
from kvmarch.lab.fuzz.run import Found, Fuzz
from kvmarch.lab.fuzz.save import save_recording, save_scenario
from kvmarch.lab.fuzz.scenario import scenario_of
from kvmarch.lab.fuzz.show import show
from kvmarch.lab.record import CODE_GPA
from kvmarch.lab.session import Config, Session, booted
from kvmarch.lab.sides import Memory, Setup, Side
from kvmarch.plugins import Loaded, link
from kvmarch.recordings.surveys import alike_but_for_tables
from kvmarch.recordings.traces import COMPARED
from kvmarch.scenarios.records import Scenario


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be done.

    :param first: the number of the process to begin with.
    :param most: differences after which it ends.
    :param folder: where differences are kept.
    :param release: of the model; that of the kernel if there is none.
    :param settings: options of the machine, as text.
    """

    seed: int
    steps: int
    first: int = 0
    most: int = 1
    folder: Path = Path()
    release: str = ""
    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    settings: Mapping[str, str] | None = None


def fuzz_kernel(
    arch: Loaded, config: Config, asked: Asked, say: Callable[[str], None]
) -> int:
    """Hold the model against a real kernel; return how many differences were found.

    :param say: is called with each difference, and with a last line.
    :raises LabError: the kernel cannot be had, booted or driven.
    """
    with booted(arch, replace(config, only=COMPARED)) as session:
        _warm_up(session)
        release = _release(asked.release or session.kernel)
        options = dict(session.options)
        for name, value in (asked.settings or {}).items():
            options[name] = arch.info.settle(release, {name: value})[name]
        model = _model(arch, release, options, asked)
        return _fuzz(arch, session, model, asked, say)


def fuzz_models(
    arch: Loaded, kernel: str, asked: Asked, say: Callable[[str], None]
) -> int:
    """Hold one kernel of the model against another; return how many differences.

    :param kernel: the release that takes the place of a real one.
    """
    release = find_release(kernel)
    options = arch.info.settle(release, asked.settings or {})
    one = ModelSide(link(arch, release), options)
    other = find_release(asked.release) if asked.release else release
    options = arch.info.settle(other, asked.settings or {})
    return _fuzz(arch, one, _model(arch, other, options, asked), asked, say)


def _model(
    arch: Loaded, release: Release, options: Mapping[str, Any], asked: Asked
) -> ModelSide:
    return ModelSide(link(arch, release, asked.plus, asked.minus), options)


def _release(kernel: str) -> Release:
    """Return the release of a kernel; the newest one for what is newer still."""
    try:
        return find_release(kernel)
    except UnknownNameError:
        return RELEASES[-1]


def _warm_up(session: Session) -> None:
    """Let the first entries say what of the machine nobody states."""
    code = CODE_GPA // session.page_size
    session.begin(Setup((Memory("code", 1), Memory("ram", 4)), 1, code))
    for line in (
        f"slot id=0 memory=code gfn={code}",
        "slot id=1 memory=ram gfn=0",
        "write gfn=0",
        "read gfn=1",
    ):
        session.do(line)
    session.end()


def _fuzz(
    arch: Loaded,
    one: Side,
    model: ModelSide,
    asked: Asked,
    say: Callable[[str], None],
) -> int:
    k, options = model.k, model.options
    huge_pages = 1 << arch.info.pmd_order.get(model.page_size, 0)
    shape = Shape(
        model.page_size,
        huge_pages,
        arch.info.readonly_slots,
        arch.info.address_spaces,
    )

    def repoint(entry: int, level: int, pfn: int) -> int:
        moved: int = k.entry_repoint.fn(k, options, entry, level, pfn)
        return moved

    comparer = Comparer(huge_pages, repoint, alike_but_for_tables(k, options))
    fuzz = Fuzz(one, model, comparer)
    begun, count = time.monotonic(), 0
    told: set[str] = set()

    def tell(number: int, line: str) -> None:
        """Say once of each property that the model's kernel loses it."""
        for loss in model.lost:
            if loss.property not in told:
                told.add(loss.property)
                say(
                    f"process {number}: {line}: the model loses {loss.property}: "
                    f"{loss.sentence}\n"
                )

    fuzz.watch = tell
    try:
        for found in fuzz.run(asked.seed, asked.steps, shape, asked.first):
            count += 1
            text = show(found, comparer, model.names)
            say(text + _keep(one, found, asked))
            if count >= asked.most:
                break
    except LabError:
        # A kernel that panics or hangs cannot be asked again: keep what it was at.
        if fuzz.doing is not None:
            say(_keep_last(one, fuzz.doing, asked))
        raise
    took = time.monotonic() - begun
    tally = fuzz.tally
    against = f"{arch.name} {one.kernel} and model {show_release(k.release)}"
    say(
        f"{against}, seed {asked.seed}: {tally.steps} steps in {tally.vms} VMs "
        f"of {tally.processes} processes, {count} differences; "
        f"{comparer.not_walked} steps without a tree, "
        f"{tally.unlike} processes without the model's huge pages; {took:.0f} s, "
        f"{tally.steps / took:.0f} steps/s"
    )
    return count


def _scenario(
    one: Side, asked: Asked, program: Program, end: str, title: str, more: str = ""
) -> tuple[Scenario, Path]:
    """Write a program as a scenario; return it, and where it is."""
    name = f"fuzz-{one.arch}-{one.kernel}-{asked.seed}-{end}"
    command = (
        f"kvmarch lab fuzz --arch {one.arch} --kernel {one.kernel} --seed {asked.seed}"
    )
    scenario = scenario_of(*program, name, title, command + more)
    path = asked.folder / f"{name}.toml"
    save_scenario(scenario, path)
    return scenario, path


def _keep_last(one: Side, program: Program, asked: Asked) -> str:
    """Write what was done when a kernel did not answer any more."""
    title = "After the last step the kernel did not answer"
    _, path = _scenario(one, asked, program, "last", title)
    return f"  kept: {path}"


def _keep(one: Side, found: Found, asked: Asked) -> str:
    """Write a difference as files; return where they are."""
    difference = found.seen.difference
    title = f"{difference.what}: {difference.text}"
    more = f" --first {found.number}"
    scenario, path = _scenario(
        one, asked, found.program, str(found.number), title, more
    )
    kept = [str(path)]
    if isinstance(one, Session):
        path = path.with_suffix(".json")
        save_recording(one, scenario, path)
        kept.append(str(path))
    return f"  kept: {', '.join(kept)}\n"
