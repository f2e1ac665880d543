"""Verbs that a plugin brings, in the lines of scenarios."""

from types import SimpleNamespace

import pytest

from kvmarch import ArchVerb, hookimpl, op, plugins
from kvmarch.errors import ScenarioError
from kvmarch.scenarios.cells import cells_of, explore_cell
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.file import load
from kvmarch.scenarios.play import play

SCENARIO = """
title = "A verb of the toy's own"
[vm]
memory = [{{ name = "ram", pages = 2 }}]
[[task]]
name = "vmm"
steps = ["slot id=0 memory=ram gfn=0", "read gfn=0", "{line}"]
[[task]]
name = "vcpu"
steps = ["read gfn=1"]
"""


@op(name="toy forgets")
def _forget(vm, gfn, how):
    vm.world.note("forgotten", gfn=gfn, how=how)
    return gfn


async def forget(vm, args):
    """Note what would be forgotten, in a step; return it."""
    return await _forget(vm, args["gfn"], args.get("how", "now"))


@pytest.fixture
def own(toy_module):
    """Return the toy with a verb of its own."""

    @hookimpl
    def kvmarch_verbs():
        params = {"gfn": "int", "how": "?word:now|later", "vcpu": "?int"}
        return (ArchVerb("forget", "Forget a page.", forget, params),)

    names = {name: x for name, x in vars(toy_module).items() if name[:2] != "__"}
    module = SimpleNamespace(__name__="own", **names, kvmarch_verbs=kvmarch_verbs)
    return plugins.Plugins([plugins.check("toy", module, "kvmarch-toy", "1.0")], [])


@pytest.fixture
def scenario(tmp_path):
    """Return a scenario with one line of its own."""

    def make(line):
        path = tmp_path / "own.toml"
        path.write_text(SCENARIO.format(line=line), "utf-8")
        return load(path)

    return make


@pytest.fixture
def played(own, scenario):
    """Play a scenario with one line of its own."""

    def make(line, arch=None):
        arch = arch or own.get("toy")
        k = plugins.link(arch, (6, 1))
        return play(scenario(line), k, arch.info.settle((6, 1), {}))

    return make


def test_a_line_runs_the_plugins_path(played):
    run = played("toy.forget gfn=1 how=later")

    assert [e.data for e in run.events if e.name == "forgotten"] == [
        {"gfn": 1, "how": "later"}
    ]
    assert run.results["vmm", 2] == 1


def test_it_is_explored_like_any_other(own, scenario):
    cell = next(cells_of(scenario("toy.forget gfn=1"), own, Choose(kernel=("v6.1",))))[
        0
    ]
    explored = explore_cell(cell, own)

    assert explored.verdicts == []
    assert explored.search.states > 1


REFUSED = [
    ("toy.forgot gfn=1", "unknown verb 'toy.forgot'; of toy there is toy.forget"),
    ("toy.forget", "toy.forget needs gfn="),
    ("toy.forget gfn=x", "toy.forget gfn: 'x' is no number"),
    ("toy.forget gfn=1 how=never", "toy.forget how: 'never' is none of now, later"),
    ("toy.forget gfn=1 page=1", "toy.forget has no argument page; there is gfn, how"),
    ("toy.forget gfn=1 vcpu=1", "toy.forget: no vcpu 1; there is 1"),
    ("other.forget gfn=1", "other.forget is of other, and this is toy"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED)
def test_a_line_that_the_architecture_does_not_understand(played, line, message):
    with pytest.raises(ScenarioError) as refused:
        played(line)

    assert str(refused.value).startswith(f"own: task[0].steps[2]: {message}")


def test_an_architecture_without_verbs_says_so(played, toy):
    with pytest.raises(ScenarioError, match=r"'toy\.forget'; of toy there is none"):
        played("toy.forget gfn=1", toy)


@pytest.mark.parametrize("line", ["toy. gfn=1", ".forget gfn=1", "a.b.c", "forget"])
def test_what_is_no_verb_is_refused_when_the_file_is_read(scenario, line):
    with pytest.raises(ScenarioError, match="unknown verb"):
        scenario(line)
