"""The model as a side: it does a scenario's lines as a booted kernel does them."""

__all__ = ["ModelSide"]

from collections.abc import Mapping, Sequence
from errno import EFAULT
from typing import Any

from kvmarch.changes import Kernel, show_release
from kvmarch.errors import LabError
from kvmarch.lab.fuzz.scenario import scenario_of
from kvmarch.lab.sides import Leaf, Look, Setup
from kvmarch.lab.steps import ACCESSES, gpa_of, line_of
from kvmarch.machine.run import run_path
from kvmarch.machine.world import Event, Violation
from kvmarch.recordings.traces import Tracer
from kvmarch.scenarios.play import ranges_of, set_up, task_path
from kvmarch.scenarios.records import Memory, StepLine
from kvmarch.scenarios.verbs import LEAVE_GPA, VERBS, Context, values
from kvmarch.walk.names import Machine, Names

U64 = (1 << 64) - 1
EXITS = {"hlt": 5, "mmio": 6}
"""KVM_EXIT_HLT and KVM_EXIT_MMIO, by the model's names."""
ENDS = ("exit_mm",)
"""After them there is no memory to look at."""
_TASK = "probe"


class ModelSide:
    """A kernel of the model as a side: see :class:`kvmarch.lab.sides.Side`.

    A WARN that fires is in :attr:`Look.kernel_log`, as a real kernel's are. Other
    properties that are lost no kernel tells of; :attr:`lost` has them.

    :param options: every option of the architecture, see ``ArchInfo.settle``.
    """

    def __init__(self, k: Kernel, options: Mapping[str, Any]) -> None:
        self.k = k
        self.arch = k.arch
        self.kernel = show_release(k.release)
        self.page_size = int(options["page_size"])
        self.options: Mapping[str, Any] = options
        self.names = Names(Machine(k, options, k.walk.fn(k, options)))
        self._shift = self.page_size.bit_length() - 1
        self.lost: list[Violation] = []
        """What the VM at hand has lost besides, in order."""
        self._context: Context | None = None
        self._tracer = Tracer(self._shift, ())
        self._memory: dict[str, Memory] = {}
        self._accessed: set[int] = set()

    def begin(self, setup: Setup) -> None:
        """Make the VMs in a new process."""
        program = scenario_of(setup, ())
        self._memory = {row.name: row for row in program.memory}
        self._accessed = set()
        self.lost = []
        self._context = set_up(program, self.k, self.options)
        self._tracer = Tracer(self._shift, ranges_of(program, self.page_size))

    def do(self, line: str) -> Look:
        """Do one line of a scenario.

        :raises LabError: there is no VM.
        """
        context = self._context
        if context is None:
            raise LabError(f"{line!r}: no VM; begin one first")
        vms, world = context.machine.vms, context.machine.world
        checked = line_of(line, self._memory, len(vms[0].vcpus), len(vms))
        lost = len(world.violations)
        del world.events[:]
        for vcpu in [vcpu for vm in vms for vcpu in vm.vcpus]:
            # A TLB may lose what it holds at any time. Emulated ones do so whenever a
            # guest is entered: what a flush forgot is not seen there.
            vcpu.tlb.drop_all()
        lines = [checked]
        if checked.verb in ACCESSES:
            args = values(VERBS[checked.verb], checked.args)
            self._accessed.add(gpa_of(checked.verb, args, self._shift) >> self._shift)
        if checked.verb not in ENDS:
            also = {"also": ",".join(f"{gfn:x}" for gfn in sorted(self._accessed))}
            args = {"name": _TASK, **({} if not self._accessed else also)}
            lines.append(StepLine("survey", args, "survey"))
        results: dict[tuple[str, int], Any] = {}
        run_path(world, task_path(context, results, _TASK, tuple(lines)), _TASK)
        found = next((e.data for e in world.events if e.name == "survey"), None)
        fresh = world.violations[lost:]
        self.lost.extend(loss for loss in fresh if loss.property != "warn")
        return Look(
            tuple(self._answers(checked, results[_TASK, 0], world.events)),
            trees=(None,) * len(vms)
            if found is None
            else tuple(
                tuple(self._leaf(*entry) for entry in t) for t in found["trees"]
            ),
            frames={} if found is None else found["frames"],
            traced=self._tracer.of_model(world.events),
            kernel_log=tuple(v.sentence for v in fresh if v.property == "warn"),
        )

    def end(self) -> None:
        """Let the VMs and their process go."""
        self._context = None

    def _leaf(self, gfn: int, level: int, entry: int) -> Leaf:
        k, options, layout = self.names.machine
        pfn: int | None = k.entry_pfn.fn(k, options, entry, level)
        pages = 1
        if layout is not None:
            pages = 1 << layout.by_level[level].shift - layout.page_shift
        return Leaf(gfn, level, entry, pfn, self.names.of(entry, level).kind, pages)

    # -- answers, as the program in a kernel prints them -------------------------------

    def _answers(
        self, line: StepLine, value: Any, events: Sequence[Event]
    ) -> list[str]:
        args = values(VERBS[line.verb], line.args)
        if line.verb in ACCESSES:
            return [self._run(line.verb, args, value, events)]
        if line.verb in {"slot", "slot_delete"}:
            return [self._slot(args, value)]
        if line.verb == "dirty_get":
            errno, bits = value
            return [f"dirty rc={_rc(errno)} {bits:x} errno={errno}"]
        if line.verb == "dirty_clear":
            return [f"clear rc={_rc(value)} errno={value}"]
        return []

    def _run(
        self, verb: str, args: Mapping[str, Any], value: str, events: Sequence[Event]
    ) -> str:
        gpa = gpa_of(verb, args, self._shift)
        head = f"run {ACCESSES[verb]} gpa={gpa:x}"
        if value not in EXITS:
            return f"{head} rc=-1 errno={EFAULT}" if value == "error" else head + value
        where = ""
        if value == "mmio":
            leaving = [e for e in events if e.name == "kvm_userspace_exit"]
            gfn = leaving[-1].data["gfn"] if leaving else -1
            known = {gpa >> self._shift: gpa, LEAVE_GPA >> self._shift: LEAVE_GPA}
            where = f" mmio={known.get(gfn, gfn << self._shift):x}"
        return f"{head} rc=0 exit={EXITS[value]}{where}"

    def _slot(self, args: Mapping[str, Any], errno: int) -> str:
        gpa = size = flags = 0
        if "memory" in args:
            gpa = args["gpa"] if "gpa" in args else args.get("gfn", 0) << self._shift
            have = self._memory[args["memory"]].pages - args.get("page", 0)
            size = args.get("pages", have) << self._shift
            flags = args.get("flags", 0)
        number = args.get("as_id", 0) << 16 | args["id"]
        return (
            f"slot id={number} flags={flags} gpa={gpa & U64:x} size={size & U64:x} "
            f"rc={_rc(errno)} errno={errno}"
        )


def _rc(errno: int) -> int:
    return -1 if errno else 0
