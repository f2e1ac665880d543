"""What a plugin's operations may do wrong, hook by hook, and who is named for it."""

import pytest
from altering import alter, check

from kvmarch import hookimpl, hookspecs, plugins, toolspecs
from kvmarch.blame import RETURNS, blaming, checked
from kvmarch.changes import Choice
from kvmarch.errors import EntryError, KernelError, PluginError, TierError
from kvmarch.plugins import Plugins
from kvmarch.scenarios.compare import Choose, compare
from kvmarch.scenarios.exploring import explore_table
from kvmarch.scenarios.file import find, load
from kvmarch.scenarios.formats import decode_table, formats_table
from kvmarch.scenarios.show import run_table

SCENARIOS = ("change_pte", "aging", "dirty_log", "memslot_lifecycle", "vm_teardown")
CHOOSE = Choose(arch=("toy",), kernel=("v6.9",))
OPERATIONS = sorted(
    {name for names in hookspecs.TIERS.values() for name in names} - {"arch"}
    | {"destroy_vm", "handle_request", "memslots_updated", "sync_dirty_log"}
    | {"vcpu_create", "vcpu_load", "walk"}
)
SPECS = vars(hookspecs) | vars(toolspecs)
LOOKED_AT = {"entry_pfn", "entry_repoint", "leaf_table", "walk"}
"""Operations that no scenario calls, only those who look at entries."""


@pytest.fixture
def altered(toy_module):
    """Return the toy with hooks exchanged; None takes one out."""

    def make(**hooks):
        names = {f"kvmarch_{name}": fn for name, fn in hooks.items()}
        return check(alter(toy_module, names))

    return make


def doing(name, what):
    """Return an implementation of a hook that does something else."""
    arguments = SPECS[f"kvmarch_{name}"].__code__
    names = ", ".join(arguments.co_varnames[: arguments.co_argcount])
    begin = "async " if name in hookspecs.PATHS else ""
    space = {"what": what}
    exec(f"{begin}def kvmarch_{name}({names}):\n    return what()", space)  # noqa: S102
    return hookimpl(space[f"kvmarch_{name}"])


def raising():
    raise ValueError("two\nlines")


def doors(arch):
    """Return every table that a command would print of an architecture."""
    there = Plugins([arch], [])
    for name in SCENARIOS:
        yield lambda name=name: compare(load(find(name)), there, CHOOSE)
    yield lambda: formats_table(there, CHOOSE, None)
    yield lambda: decode_table(there, CHOOSE, "0x1001", None)


def said(arch):
    """Return what the commands say of an architecture, and their worst status."""
    lines, worst = [], 0
    for door in doors(arch):
        try:
            table = door()
        except PluginError as error:
            lines.append(str(error))
            worst = 2
        else:
            lines.extend(table.notes)
            worst = max(worst, table.status)
    return lines, worst


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - LOOKED_AT))
def test_a_hook_that_raises_is_named(altered, name):
    lines, worst = said(altered(**{name: doing(name, raising)}))

    line = f"plugin toy: hook kvmarch_{name} raised ValueError: two lines"
    assert any(line in text for text in lines), lines
    assert all("\n" not in text for text in lines)
    assert worst == 2


@pytest.mark.parametrize("name", sorted(set(RETURNS) - LOOKED_AT))
def test_a_hook_that_returns_a_wrong_type_is_named(altered, name):
    # No answer of any operation can be changed.
    arch = altered(**{name: doing(name, lambda: bytearray(b"wrong"))})
    k = plugins.link(checked(arch), (6, 9))
    operation = getattr(k, name)
    body = getattr(operation, "fn", operation)
    arguments = [None] * body.__wrapped__.__code__.co_argcount

    def call():
        answer = body(*arguments)
        return answer.send(None) if name in hookspecs.PATHS else answer

    with pytest.raises(PluginError) as refused:
        call()

    assert str(refused.value).startswith(
        f"plugin toy: hook kvmarch_{name} returned bytearray bytearray(b'wrong'), not "
    )


@pytest.mark.parametrize(
    "name", ["decode", "entry", "tlb_tag", "unmap_gfn_range", "vm_create"]
)
def test_a_wrong_type_over_which_the_core_stumbles_is_named(altered, name):
    lines, worst = said(altered(**{name: doing(name, set)}))

    line = f"plugin toy: hook kvmarch_{name} returned set set(), not "
    assert any(line in text for text in lines), lines
    assert worst == 2


@pytest.mark.parametrize("name", sorted(LOOKED_AT))
def test_what_only_looks_is_named_by_the_contract(altered, name):
    k = plugins.link(checked(altered(**{name: doing(name, raising)})), (6, 9))
    count = SPECS[f"kvmarch_{name}"].__code__.co_argcount

    with pytest.raises(PluginError, match=f"kvmarch_{name} raised ValueError"):
        getattr(k, name).fn(*[None] * count)


def test_the_others_work(altered, toy):
    bad = altered(translate=doing("translate", raising))
    other = plugins.Loaded(
        **{
            **{f: getattr(toy, f) for f in plugins.Loaded.__slots__},
            "info": toy.info.__class__(
                name="other", title="Other", first=(3, 16), options=toy.info.options
            ),
        }
    )
    table = compare(
        load(find("aging")), Plugins([bad, other], []), Choose(kernel=("v6.9",))
    )

    rows = {row["arch"]: row for row in table.rows}
    assert rows["toy"]["mmu"] is None
    assert rows["other"]["mmu"] is not None
    assert table.status == 2


def test_what_a_hook_packs_wrongly_is_its_own_fault(altered):
    def overflowing():
        raise EntryError("pfn: 0x10000000000 needs more than 40 bits")

    lines, _worst = said(altered(translate=doing("translate", overflowing)))

    assert "hook kvmarch_translate raised EntryError: pfn: 0x100000" in lines[0]


def test_a_choice_that_raises_is_named_as_the_operation_that_it_is(altered):
    choice = Choice("unmap_gfn_range", "how a range is cleared")

    @choice.when()
    def clear(vm, slot, start, end, may_block):
        raise ValueError("two\nlines")

    arch = altered(unmap_gfn_range=None, choices=doing("choices", lambda: (choice,)))
    lines, worst = said(arch)

    assert any("hook kvmarch_unmap_gfn_range raised ValueError" in t for t in lines)
    assert worst == 2


def test_an_error_of_the_core_is_not_blamed_on_a_plugin(toy):
    with pytest.raises(ZeroDivisionError), blaming(toy, lambda _arch: None):
        _ = 1 / 0
    with pytest.raises(KernelError, match="no such"), blaming(toy, lambda _arch: None):
        raise KernelError("no such")


def test_a_run_and_a_search_name_the_hook(altered):
    there = Plugins([altered(translate=doing("translate", raising))], [])

    with pytest.raises(PluginError, match="kvmarch_translate raised ValueError"):
        run_table(load(find("aging")), there, CHOOSE)
    table = explore_table([load(find("change_pte_cow"))], there, CHOOSE)

    assert [row["verdict"] for row in table.rows] == ["error"]
    assert "hook kvmarch_translate raised ValueError: two lines" in table.notes[0]
    assert table.status == 2


# -- what is not reached -----------------------------------------------------------


def stopping(altered, tier):
    beyond = (names for t, names in hookspecs.TIERS.items() if t > tier)
    return altered(**dict.fromkeys(name for names in beyond for name in names))


@pytest.mark.parametrize(
    ("scenario", "needs"),
    [
        pytest.param("change_pte", 3, id="change_pte"),
        pytest.param("aging", 3, id="aging"),
        pytest.param("dirty_log", 4, id="dirty_log"),
        pytest.param("memslot_lifecycle", 4, id="memslots"),
        pytest.param("vm_teardown", 5, id="teardown"),
    ],
)
@pytest.mark.parametrize("tier", [1, 2, 3, 4, 5])
def test_a_comparison_marks_what_a_tier_does_not_reach(altered, scenario, needs, tier):
    there = Plugins([stopping(altered, tier)], [])
    table = compare(load(find(scenario)), there, CHOOSE)

    (row,) = table.rows
    if tier >= needs:
        assert row["mmu"] is not None
        assert row["note"] == ""
    else:
        assert {row[column.name] for column in table.columns[2:-1]} == {None}
        assert row["note"].startswith(f"toy stops at tier {tier}; kvmarch_")
        assert table.notes == [f"toy v6.9: {row['note']}"]
    assert table.status == 0


def test_what_is_reached_is_shown_below_the_highest_tier(altered):
    there = Plugins([stopping(altered, 2)], [])
    table = compare(load(find("gpc_basic")), there, CHOOSE)

    assert table.rows[0]["note"] == ""
    assert table.rows[0]["mmu"] is not None


def test_a_search_marks_what_a_tier_does_not_reach(altered):
    there = Plugins([stopping(altered, 2)], [])
    table = explore_table([load(find("change_pte_cow"))], there, CHOOSE)

    assert [row["verdict"] for row in table.rows] == ["not reached"]
    assert "toy stops at tier 2; kvmarch_set_spte_gfn is of tier 3" in table.notes[0]
    assert table.status == 0


def test_a_run_says_what_a_tier_does_not_reach(altered):
    there = Plugins([stopping(altered, 1)], [])

    with pytest.raises(TierError, match="toy stops at tier 1; kvmarch_vm_create"):
        run_table(load(find("aging")), there, CHOOSE)
