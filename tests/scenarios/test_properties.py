"""Expressions of scenarios, and the properties that are always on."""

import pytest

from kvmarch.errors import ScenarioError
from kvmarch.scenarios.properties import (
    ALWAYS_ON,
    check,
    compile_bad,
    compiled,
    evaluate,
)
from kvmarch.scenarios.verbs import Context


@pytest.fixture
def context(bench):
    one = bench()
    one.slot()
    one.access(1, "write")
    return Context(one.machine, {"ram": (one.hva, 16 * one.page)})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("vm.mmu_invalidate_seq == 0", True, id="attribute"),
        pytest.param("len", None, id="no-builtins"),
        pytest.param("1 + 2 * 3 - 8 // 2 % 3", 6, id="arithmetic"),
        pytest.param("1 << 4 | 3 & 2", 18, id="bits"),
        pytest.param("not (1 < 2 <= 2 and 3 != 4)", False, id="boolean"),
        pytest.param("-1 >> 1 == -1 or False", True, id="shift"),
        pytest.param("any(v.number > 0 for v in vcpus)", False, id="any"),
        pytest.param("all(v.number == 0 for v in vcpus)", True, id="all"),
        pytest.param("1 in (1, 2) and 3 not in (1, 2)", True, id="in"),
        pytest.param("host[0x7f0000000000] is not None", True, id="host"),
        pytest.param("host[0x1000] is None", True, id="host-unmapped"),
        pytest.param("entry[0] == 0 and entry[1] != 0", True, id="entry"),
        pytest.param("vm.memslots[0].slots[0].npages", 16, id="subscript"),
    ],
)
def test_an_expression_has_a_value(context, text, value):
    if value is None:
        with pytest.raises(ScenarioError, match="name 'len' is not defined"):
            evaluate(text, context)
    else:
        assert evaluate(text, context) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("1 +", "is no expression: invalid syntax", id="syntax"),
        pytest.param("", "'' is no expression", id="empty"),
        pytest.param("a = 1", "is no expression", id="statement"),
        pytest.param("lambda: 1", "Lambda is not allowed", id="lambda"),
        pytest.param("[1]", "List is not allowed", id="list"),
        pytest.param("2 ** 3", "Pow is not allowed", id="power"),
        pytest.param("f'{vm}'", "JoinedStr is not allowed", id="f-string"),
        pytest.param("(x := 1)", "NamedExpr is not allowed", id="walrus"),
        pytest.param("vm._x", "attribute _x is not allowed", id="private"),
        pytest.param("vm.__class__", "attribute __class__ is not", id="dunder"),
        pytest.param("open('x')", r"only any\(\) and all\(\)", id="call"),
        pytest.param("vm.freeze()", r"only any\(\) and all\(\)", id="method"),
        pytest.param("(" * 300 + ")" * 300, "is no expression", id="deep"),
    ],
)
def test_an_expression_is_refused(text, message):
    with pytest.raises(ScenarioError, match=message):
        compile_bad(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("no_such", "no_such", id="name"),
        pytest.param("vm.no_such", "no_such", id="attribute"),
        pytest.param("vm.vcpus[9]", "out of range", id="index"),
        pytest.param("1 < 'a'", "not supported", id="type"),
        pytest.param("1 // 0", "zero", id="division"),
        pytest.param("1 << -1", "negative shift", id="shift"),
    ],
)
def test_an_expression_without_a_value(context, text, message):
    with pytest.raises(ScenarioError, match=message):
        evaluate(text, context)


def test_a_lost_property_is_recorded_once(context):
    tests = (("mine", compile_bad("True")), ("other", compile_bad("False")))

    check(tests, context)
    check(tests, context)

    assert [v.property for v in context.machine.world.violations] == ["mine"]


def test_properties_are_asked_when_they_say(scenario):
    read = scenario(
        'title = "t"\n[[task]]\nname = "a"\nsteps = []\n'
        '[property.one]\nask = "always"\nbad = "False"\n[property.two]\nbad = "False"'
    )

    assert [name for name, _ in compiled(read, "always")] == ["one"]
    assert [name for name, _ in compiled(read, "at-rest")] == ["two"]


def test_the_properties_that_are_always_on_say_what_and_why():
    ids = [row.id for row in ALWAYS_ON]

    assert len(set(ids)) == len(ids)
    assert all(row.sentence and row.source for row in ALWAYS_ON)
