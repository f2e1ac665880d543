"""Two kernels of the model: the same never differ, others do, in the fewest steps."""

from dataclasses import replace

import pytest

from kvmarch.errors import LabError
from kvmarch.lab.fuzz.command import Asked, fuzz_models
from kvmarch.lab.fuzz.compare import Comparer
from kvmarch.lab.fuzz.generate import Shape
from kvmarch.lab.fuzz.model import ModelSide
from kvmarch.lab.fuzz.run import Fuzz
from kvmarch.plugins import link, load
from kvmarch.scenarios.file import load as load_scenario


@pytest.fixture(scope="module")
def plugins():
    return load()


def side(arch, release, minus=(), **options):
    k = link(arch, release, (), minus)
    given = {name: str(value) for name, value in options.items()}
    return ModelSide(k, arch.info.settle(release, given))


def fuzz(one, other, steps=200, until=""):
    """Return the run and what it found, up to the first difference of a kind."""
    k, options = other.k, other.options

    def repoint(entry, level, pfn):
        return k.entry_repoint.fn(k, options, entry, level, pfn)

    shape = Shape(
        other.page_size,
        1 << k.arch_info.pmd_order.get(other.page_size, 0),
        k.arch_info.readonly_slots,
        k.arch_info.address_spaces,
    )
    run = Fuzz(one, other, Comparer(shape.huge_pages, repoint))
    found = []
    for difference in run.run(1, steps, shape):
        found.append(difference)
        if difference.seen.difference.what == until:
            break
    return run, found


@pytest.mark.parametrize("name", ["x86", "arm64", "ppc"])
@pytest.mark.parametrize("release", [(5, 10), (6, 1), (7, 2)])
def test_the_same_kernel_never_differs(plugins, name, release):
    arch = plugins.get(name)
    run, found = fuzz(side(arch, release), side(arch, release))

    assert found == []
    assert run.tally.steps == 200
    assert run.comparer.not_walked == 0


def test_what_a_change_does_is_found_in_the_fewest_steps(plugins):
    arch = plugins.get("x86")
    old = side(arch, (6, 1), ["mprotect-upgrades"])
    run, found = fuzz(side(arch, (6, 1)), old, steps=4000, until="tree")

    assert found[-1].seen.difference.what == "tree"
    verbs = [line.split()[0] for line in found[-1].program.lines]
    assert sorted(verbs[:-1]) == ["mprotect", "mprotect", "slot", "slot"]
    assert verbs[-1] in {"read", "exec"}
    leaves = [leaf for _vm, leaf, _real in run.comparer.leaves(*found[-1].seen.looks)]
    assert len(leaves) == 2


def test_answers_differ_where_a_check_does(plugins):
    arch = plugins.get("x86")
    old = side(arch, (6, 1), ["dirty-clear-tail"])
    _run, found = fuzz(side(arch, (6, 1)), old, steps=4000, until="answer")

    assert found[-1].seen.difference.what == "answer"
    lines = found[-1].program.lines
    assert [line.split()[0] for line in lines] == ["slot", "dirty_clear"]


def test_what_only_notifiers_are_told_is_found(plugins):
    arch = plugins.get("x86")
    old = side(arch, (6, 12), ["mprotect-by-gib"])
    _run, found = fuzz(side(arch, (6, 12)), old, steps=4000, until="notifier events")

    assert found[-1].seen.difference.what == "notifier events"
    assert found[-1].program.lines[-1].startswith("mprotect")


class Dies:
    """A side whose process dies at the first write."""

    def __init__(self, side):
        self.side = side
        self.arch, self.kernel, self.page_size = side.arch, side.kernel, side.page_size
        self.begin, self.end = side.begin, side.end

    def do(self, line):
        if line.startswith("write"):
            raise LabError("the process with the VM died: why?")
        return self.side.do(line)


def test_a_process_that_dies_is_a_difference(plugins):
    arch = plugins.get("x86")
    one = Dies(side(arch, (6, 1)))
    _run, found = fuzz(one, side(arch, (6, 1)), steps=60)

    assert found[0].seen.difference.what == "end"
    assert [line.split()[0] for line in found[0].program.lines] == ["write"]


class Warns(Dies):
    """A side whose kernel warns at the first write."""

    def do(self, line):
        look = self.side.do(line)
        return replace(look, kernel_log=("BUG",)) if line.startswith("write") else look


def test_a_warning_is_a_difference(plugins):
    arch = plugins.get("x86")
    _run, found = fuzz(Warns(side(arch, (6, 1))), side(arch, (6, 1)), steps=60)

    assert found[0].seen.difference.what == "kernel log"
    assert [line.split()[0] for line in found[0].program.lines] == ["write"]


def test_what_is_found_is_kept_and_told(plugins, tmp_path):
    arch = plugins.get("x86")
    said = []
    asked = Asked(1, 4000, folder=tmp_path, minus=("dirty-clear-tail",))

    assert fuzz_models(arch, "v6.1", asked, said.append) == 1
    (path,) = tmp_path.iterdir()
    kept = load_scenario(path)
    assert [line.verb for line in kept.tasks[0].steps] == ["slot", "dirty_clear"]
    assert "dirty_clear" in said[0]
    assert "1 differences" in said[1]
    assert kept.title.startswith("answer: recorded clear rc=0")


class Hangs(Dies):
    """A side that does not come back from its first write, nor afterwards."""

    def __init__(self, side):
        super().__init__(side)
        self.end = self.give_up
        self.hangs = False

    def do(self, line):
        self.hangs = line.startswith("write")
        return super().do(line)

    def give_up(self):
        if self.hangs:
            raise LabError("no answer from the kernel for 60 seconds")
        self.side.end()


def test_what_a_kernel_hangs_at_is_known(plugins):
    arch = plugins.get("x86")
    one = Hangs(side(arch, (6, 1)))
    other = side(arch, (6, 1))
    run = Fuzz(one, other, Comparer(512, lambda *args: 0))
    with pytest.raises(LabError, match="no answer"):
        list(run.run(1, 60, Shape()))

    assert run.doing.lines[-1].startswith("write")
