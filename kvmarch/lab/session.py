"""A booted kernel that serves one process with its VMs after the other, by steps."""

__all__ = ["Config", "Session", "booted", "check_programs"]

import contextlib
import os
import re
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kvmarch.arch import LabMachine
from kvmarch.changes import RELEASES, find_release
from kvmarch.errors import LabError, UnknownNameError
from kvmarch.lab.btf import kernel_types, module_types
from kvmarch.lab.build import probe
from kvmarch.lab.counters import definition, read_counters
from kvmarch.lab.events import Event, read_event
from kvmarch.lab.initramfs import initramfs
from kvmarch.lab.kernels import KernelFiles, boot_image
from kvmarch.lab.machines import machine_of
from kvmarch.lab.modules import load_order
from kvmarch.lab.observe import Observer, Seen, candidates
from kvmarch.lab.qemu import Emulator, emulator_program
from kvmarch.lab.root import Known
from kvmarch.lab.sides import Look, Setup, Tree
from kvmarch.lab.steps import Board, Order, line_of
from kvmarch.plugins import Loaded, link
from kvmarch.recordings.traces import Traced, Tracer
from kvmarch.walk.image import Region, open_image
from kvmarch.walk.path import Walker, entry_order

_LEFT = re.compile(r" rc=0 exit=[56]\b(?: mmio=([0-9a-f]+))?")
_ALARM = re.compile(r"\b(WARNING|BUG|Oops|Internal error|protection fault)\b")
"""What the kernel logs when it finds itself wrong; its other complaints are remarks."""
_PARTS = {
    "kvm": "/dev/kvm: no KVM, or no module for it",
    "ksm": "KSM; CONFIG_KSM is needed",
}
_NOTHING = Seen(None, "", ())
LAST = ("exit_mm", "vm_destroy")
"""Verbs that find nothing to do once the process has gone."""
REMARKS = 100
"""Remarks that are kept."""
SAID = 3
"""Remarks that an error repeats."""
COMMAND = 1 << 16
"""MAX_COMMAND of the probe."""
BOOT = 3
"""How many times longer than a step a boot may take."""


@dataclass(frozen=True, slots=True)
class Config:
    """What is booted, and how.

    :param arguments: of modules, by name: ``{"kvm": "tdp_mmu=0"}``. Those of a module
        that is part of the kernel go to its command line.
    :param append: more words for the kernel's command line.
    :param cpu: QEMU's CPU model; the architecture's usual one if it is empty.
    :param limit: seconds that a step may take.
    :param observe: read the VM's tables after each step.
    :param trace: let the kernel trace.
    :param only: the trace events that are wanted, by name; empty for all.
    """

    kernel: KernelFiles
    arguments: Mapping[str, str] = field(default_factory=dict)
    append: str = ""
    cpu: str = ""
    mib: int = 256
    limit: float = 60
    observe: bool = True
    trace: bool = True
    only: tuple[str, ...] = ()


def check_programs(machine: LabMachine) -> None:
    """Refuse what could not be booted anyway, before a kernel is downloaded for it.

    :raises LabError: QEMU is missing, or the probe's compiler.
    """
    emulator_program(machine)
    probe(machine)


@dataclass(slots=True)
class Tables:
    """What is known of one VM's tables.

    :param touched: whether the guest may have reached any page.
    :param seen: what the last look found.
    :param gone: the VM has been destroyed.
    """

    touched: bool = False
    seen: Seen = _NOTHING
    gone: bool = False

    @property
    def tree(self) -> Tree | None:
        """Return the whole tree; None if there must be one, and it was not found."""
        if self.seen.root is None and self.touched:
            return None
        return self.seen.leaves


@contextlib.contextmanager
def booted(arch: Loaded, config: Config) -> Iterator["Session"]:
    """Boot a kernel, and let it go in the end, whatever happens.

    :raises LabError: something is missing, or the kernel does not come up.
    """
    machine = machine_of(arch)
    if config.cpu:
        machine = replace(machine, cpu=config.cpu)
    program = probe(machine)
    modules = {
        name: (data, config.arguments.get(name, ""))
        for name, data in load_order(config.kernel.modules, machine.modules).items()
    }
    # What is no module that is loaded may be part of the kernel.
    words = [
        f"{name}.{word}"
        for name, text in config.arguments.items()
        for word in text.split()
        if name not in modules
    ]
    told = dict.fromkeys((*machine.parameters, *_given(config.arguments)))
    archive = initramfs(program, modules, tuple(told), machine.filters)
    emulator = Emulator(
        machine,
        boot_image(config.kernel, machine),
        archive,
        mib=config.mib,
        append=" ".join([config.append, *words]),
        limit=config.limit,
    )
    with emulator:
        yield Session(arch, machine, emulator, config)


def _given(arguments: Mapping[str, str]) -> list[str]:
    """Return the parameters that the arguments of modules set, as the kernel has them.

    :param arguments: by module, as in :class:`Config`.
    """
    return [
        f"{module.replace('-', '_')}.{word.partition('=')[0]}"
        for module, text in arguments.items()
        for word in text.split()
    ]


class Session:
    """A real kernel as a side: see :class:`kvmarch.lab.sides.Side`."""

    def __init__(
        self, arch: Loaded, machine: LabMachine, emulator: Emulator, config: Config
    ) -> None:
        self.arch = arch.name
        self.parameters: dict[str, str] = {}
        self.machine = ""
        self.kernel = ""
        self.page_size = 0
        self.remarks: deque[str] = deque(maxlen=REMARKS)
        """What was said last that is no answer, of a step that failed for instance."""
        self.alarms: list[str] = []
        """What the kernel has logged of itself being wrong, since the last look."""
        self.traces: list[str] = []
        """The trace events that are switched on."""
        self.vms = [Tables()]
        """What is known of the tables of the process's VMs."""
        self.method = ""
        """How the roots of VMs' tables were found."""
        self._config = config
        self._emulator = emulator
        self._missing: dict[str, str] = {}
        self._hvas: dict[int, tuple[int, int]] = {}
        self._board: Board | None = None
        self._alive = False
        self._status = 0
        """What became of the last process that died, as wait() says it."""
        self._at = 0
        self._tracing = False
        self._hear(emulator.answers(config.limit * BOOT))
        if not self.kernel:
            raise LabError("the program in the kernel did not say who it is")
        self._need("kvm")
        for name in _given(config.arguments):
            if name not in self.parameters:
                raise LabError(
                    f"kernel {self.kernel} shows no parameter {name}; a word of the "
                    "kernel's own goes with --append"
                )
        self._observer = self._make_observer(arch, machine) if config.observe else None
        if config.observe:
            self._count()
        if config.trace:
            self.trace(on=True, only=config.only)

    def _count(self) -> None:
        """Let the kernel tell its counters, if it describes its structures."""
        types = kernel_types(self._image)
        if types is not None:
            module = load_order(self._config.kernel.modules, ["kvm"]).get("kvm")
            own = None if module is None else module_types(module, types)
            line = definition(own or types)
            if line is not None:
                self._ask(f"counters {line}")

    def _make_observer(self, arch: Loaded, machine: LabMachine) -> Observer:
        try:
            release = find_release(self.kernel)
        except UnknownNameError:
            release = RELEASES[-1]
        given = {"page_size": str(self.page_size)}
        for name, value in self.parameters.items():
            option, by_value = arch.info.parameters.get(name, ("", {}))
            if value in by_value:
                given[option] = str(by_value[value])
        k = link(arch, release)
        region = Region(machine.ram_base, None, 0)
        self._image = open_image(str(self._emulator.ram), [region])
        return Observer(self._image, candidates(k, arch.info, given))

    @property
    def how(self) -> str:
        """Return in a few words how the kernel runs."""
        config = self._config
        how = f"QEMU {self._emulator.version} TCG, 1 CPU, {config.mib} MiB"
        more = [f"-cpu {config.cpu}"] if config.cpu else []
        return ", ".join([how, *more, *([config.append] if config.append else [])])

    @property
    def options(self) -> Mapping[str, Any]:
        """Return the options that fit the machine best, as far as is known."""
        if self._observer is None:
            return {"page_size": self.page_size}
        return self._observer.machine.options

    # -- the side ----------------------------------------------------------------------

    def begin(self, setup: Setup) -> None:
        """Make the VMs in a new process."""
        if any(row.mergeable for row in setup.memories):
            self._need("ksm")
        self._board = Board(setup, self.page_size)
        self._hvas.clear()
        self.vms = [Tables() for _ in range(setup.vms)]
        if self._observer is not None:
            self._observer.forget()
        self._alive = True
        self._at = 0
        for command in self._board.begin():
            self._ask(command)
            if not self._alive:
                self._died("while memory and VMs were made")

    def do(self, line: str) -> Look:
        """Do one line of a scenario.

        :raises LabError: the line cannot be done from outside, or the process dies.
        """
        board = self._board
        if board is None:
            raise LabError(f"{line!r}: no VM; begin one first")
        setup = board.setup
        checked = line_of(line, board.rows, setup.vcpus, setup.vms)
        if checked.verb == "ksm_merge":
            self._need("ksm")
        order = board.order(checked)
        commands = []
        ends = checked.verb == "exit_mm"
        if order.command and (self._alive or checked.verb not in LAST):
            commands += [f"at {order.vm:x}"] if order.vm != self._at else []
            commands.append(order.command)
            self._at = order.vm
        if self._alive and not ends:
            commands.append("frames")
        alive = self._alive
        said = self._ask(*commands)
        if alive and not self._alive and not ends:
            self._died(f"at {line!r}")
        if "KSM is late" in self.remarks:
            self.remarks.remove("KSM is late")
            raise LabError(f"{line!r}: KSM has not scanned all memory in 30 s")
        if checked.verb == "vm_destroy":
            board.forget(order.vm)
            self.vms[order.vm] = Tables(gone=True)
        return self._look(board, order, said)

    def end(self) -> None:
        """Let the VMs and their process go."""
        if self._board is not None:
            self._ask("end")
        self._board = None
        self._alive = False

    def table_of(self, gfn: int, count: int) -> tuple[int, tuple[int, ...]] | None:
        """Return the table where the walk of a gfn ends, and entries from there on.

        :returns: physical address in bytes and values; None if there is no tree. It is
            the first VM's.
        """
        root = self.vms[0].seen.root
        if self._observer is None or root is None:
            return None
        layout = self._observer.machine.layout
        with self._emulator.paused():
            walker = Walker(self._image, layout, root)
            last = walker.follow(gfn << layout.page_shift)[-1]
            level = layout.by_level[last.level]
            count = min(count, (1 << level.bits) - last.at)
            size = layout.entry_bytes
            data = self._image.read(last.table + last.at * size, count * size)
        order: Any = entry_order(self._image, layout)
        return last.table, tuple(
            int.from_bytes(data[i : i + size], order) for i in range(0, len(data), size)
        )

    def trace(self, *, on: bool, only: Iterable[str] = ()) -> None:
        """Let the kernel trace from now on, or not.

        :param only: the events that are wanted, by name; empty for all. Fewer events
            are fewer lines on the console, which is slow.
        """
        self._tracing = on
        self._ask(" ".join(["only", *only]), f"trace {int(on)}")

    # -- talking -----------------------------------------------------------------------

    def _ask(self, *commands: str) -> list[tuple[str, str]]:
        """Give commands, all at once, and return all that is said."""
        for command in commands:
            if len(command) >= COMMAND:
                raise LabError(f"{command[:40]}...: too long a line for the probe")
            self._emulator.send(command)
        said = [line for _ in commands for line in self._emulator.answers()]
        self._hear(said)
        return said

    def _hear(self, said: list[tuple[str, str]]) -> None:
        """Take what is said of the kernel and of the process."""
        for letter, text in said:
            words = text.split()
            if letter == "K":
                self.kernel, self.machine = words[0], words[1]
                self.page_size = int(words[2], 16)
            elif letter == "P":
                name, _, value = text.partition("=")
                self.parameters[name] = value
            elif letter == "T":
                self.traces.append(text.rpartition("/")[2])
            elif letter == "H" and self._board is not None:
                at, hva = int(words[0], 16), int(words[1], 16)
                pages = self._board.setup.memories[at].pages
                self._hvas[at] = hva, hva + pages * self.page_size
            elif letter == "X":
                self._alive = False
                self._status = int(text, 16)
            elif letter == "W" and _ALARM.search(text):
                self.alarms.append(text)
            elif letter in {"#", "W"}:
                self.remarks.append(text)
            elif letter == "!":
                self._missing[words[0]] = " ".join(words[1:])

    def _need(self, what: str) -> None:
        """Refuse what the kernel has not.

        :raises LabError: it has not.
        """
        if what in self._missing:
            raise LabError(
                f"kernel {self.kernel} has no {_PARTS[what]} ({self._missing[what]})",
                "\n".join([self._emulator.console, *self.remarks]).strip(),
            )

    def _died(self, when: str) -> None:
        """Say that the process has ended by itself, of what, and when.

        :param when: while what was done.
        :raises LabError: always.
        """
        self._board = None
        killed = os.WIFSIGNALED(self._status)
        how = (
            f"of {signal.Signals(os.WTERMSIG(self._status)).name}"
            if killed
            else f"with status {os.waitstatus_to_exitcode(self._status)}"
        )
        said = [*self.alarms, *self.remarks]
        told = [text for text in said if not text.startswith("no process for ")]
        raise LabError(
            f"the process with the VM died {how}: " + "; ".join([when, *told[-SAID:]])
        )

    # -- looking -----------------------------------------------------------------------

    def _look(self, board: Board, order: Order, said: list[tuple[str, str]]) -> Look:
        answers = tuple(text for letter, text in said if letter == "C")
        board.settle(all(" rc=0" in text for text in answers))
        frames: dict[str, tuple[int, ...]] = {}
        counters: dict[str, int] = {}
        for letter, text in said:
            if letter == "F":
                name, pages = self._frames(board, text)
                frames[name] = frames.get(name, ()) + pages
            elif letter == "N":
                counters = read_counters(text)
        # What the guest reached without a slot may have an entry all the same.
        if order.gfn >= 0:
            board.reached[order.vm].add(order.gfn)
            self.vms[order.vm].touched = True
        if self._observer is not None:
            with self._emulator.paused():
                for vm in range(board.setup.vms):
                    near = self._reached(board, order.gfn, answers)
                    self._walk(board, vm, near if vm == order.vm else set(), frames)
        alarms = tuple(self.alarms)
        self.alarms.clear()
        events = tuple(self._events(said))
        return Look(
            answers,
            tuple(vm.tree if self._observer is not None else None for vm in self.vms),
            frames,
            events,
            self._traced(events) if self._tracing else None,
            alarms,
            counters,
        )

    def _traced(self, events: tuple[Event, ...]) -> Traced:
        """Return events in the form that is compared."""
        shift = self.page_size.bit_length() - 1
        tracer = Tracer(shift, [range(*hvas) for hvas in self._hvas.values()])
        said = [(event.event, event.text) for event in events if event.event]
        return tracer.of_kernel(self.traces, said, sum(event.more for event in events))

    def _walk(
        self,
        board: Board,
        vm: int,
        near: set[int],
        frames: Mapping[str, tuple[int, ...]],
    ) -> None:
        """Look at the tables of a VM, while the machine is stopped.

        :param near: the pages that its guest has just reached.
        """
        tables, reached = self.vms[vm], board.reached[vm]
        if tables.gone or self._observer is None:
            return
        known = dict.fromkeys(reached, 0) | board.frames_around(frames, vm)
        known |= board.frames_by_gfn(frames, vm)
        touched = {page for page in near if known.get(page)}
        tables.seen = self._observer.look(Known(known, touched), vm)
        if tables.seen.root is not None:
            self.method = tables.seen.method

    @staticmethod
    def _reached(board: Board, gfn: int, answers: tuple[str, ...]) -> set[int]:
        """Return the pages that the guest has reached; not one that was MMIO.

        A run that failed has come as far as its code.
        """
        code = board.setup.code_gfn
        for text in answers:
            found = _LEFT.search(text)
            if found is not None:
                left = -1 if found[1] is None else int(found[1], 16) >> board.shift
                return {gfn, code} - {left}
        return {code} if gfn >= 0 else set()

    def _frames(self, board: Board, text: str) -> tuple[str, tuple[int, ...]]:
        number, *runs = text.split()
        row = board.setup.memories[int(number, 16)]
        pages: list[int] = []
        for run in runs:
            first, count = (int(part, 16) for part in run.split("*"))
            pages.extend(first + i if first else 0 for i in range(count))
        return row.name, tuple(pages)

    def _events(self, said: list[tuple[str, str]]) -> Iterator[Event]:
        for letter, text in said:
            if letter == "E":
                event = read_event(text, self._hvas, self.page_size)
                if event is not None:
                    yield event
            elif letter == "M":
                yield Event("", "", "", int(text, 16))
