"""Tasks of a scenario that can be exchanged: the same lines, each on its own vCPU."""

__all__ = ["twins_of"]

from kvmarch.changes import Kernel
from kvmarch.explore.twins import Twins
from kvmarch.scenarios.records import Scenario, TaskLines
from kvmarch.scenarios.verb import Context, find_verb


def twins_of(scenario: Scenario, context: Context) -> list[Twins]:
    """Return the sets of tasks that differ by nothing but their name and vCPU.

    A scenario that asks about one of its vCPUs has none; nor has one of several VMs.
    """
    if scenario.vms > 1 or any("vcpu" in bad for _ask, bad in scenario.bad.values()):
        return []
    k = context.machine.k
    used = {task.name: _vcpus(task, k) for task in scenario.tasks}
    alike: dict[object, list[int]] = {}
    for number, task in enumerate(scenario.tasks):
        lines = tuple(
            (line.verb, *sorted((k, v) for k, v in line.args.items() if k != "vcpu"))
            for line in task.steps
        )
        alike.setdefault((lines, len(used[task.name])), []).append(number)
    found = []
    for numbers in alike.values():
        tasks = [scenario.tasks[number] for number in numbers]
        own = [used[task.name] for task in tasks]
        others = [
            vcpu
            for name, vcpus in used.items()
            if name not in {task.name for task in tasks}
            for vcpu in vcpus
        ]
        sole = [vcpu for vcpus in own for vcpu in vcpus]
        if len(tasks) < 2 or len(own[0]) > 1 or len({*sole}) < len(sole):
            continue
        if any(vcpu in others for vcpu in sole):
            continue
        vcpus = context.machine.vm.vcpus
        things = tuple(
            (*(vcpus[vcpu] for vcpu in mine), *task.steps)
            for mine, task in zip(own, tasks, strict=True)
        )
        found.append(Twins(tuple(numbers), things))
    return found


def _vcpus(task: TaskLines, k: Kernel) -> set[int]:
    """Return the vCPUs on which a task runs the guest."""
    return {
        int(line.args.get("vcpu", "0"), 0)
        for line in task.steps
        if "vcpu" in find_verb(k, line.verb).params
    }
