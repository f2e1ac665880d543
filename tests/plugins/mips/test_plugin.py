import pytest
from kvmarch_mips.changes import CHANGES

from kvmarch import EntryError, KvmarchError, plugins
from kvmarch.changes import RELEASES
from kvmarch.errors import KernelError
from kvmarch.scenarios.columns import Seen, value_of
from kvmarch.scenarios.file import library, load
from kvmarch.scenarios.play import play

MODELLED = [release for release in RELEASES if release >= (4, 11)]
EDGES = [(4, 11), (4, 12), (5, 2), (5, 3), (5, 8), (5, 12), (5, 13), (6, 13), (7, 2)]


def configurations(mips, release, **fixed):
    """Yield the settled options of every machine that a release has."""
    options = mips.info.options
    for mmu in options["mmu"].available(release):
        for size in options["page_size"].values:
            for layout in options["layout"].available(release):
                if layout != "D" or mmu == "te":
                    given = {"mmu": mmu, "page_size": str(size), "layout": layout}
                    yield mips.info.settle(release, given | fixed)


def test_it_has_every_tier(mips):
    assert mips.tier == 5


@pytest.mark.parametrize(
    ("release", "mmu", "layout"),
    [
        pytest.param((4, 11), "te", "A", id="v4.11"),
        pytest.param((4, 12), "guestid", "A", id="v4.12"),
        pytest.param((5, 2), "guestid", "A", id="v5.2"),
        pytest.param((5, 3), "guestid", "B", id="v5.3"),
        pytest.param((7, 2), "guestid", "B", id="v7.2"),
    ],
)
def test_defaults(mips, release, mmu, layout):
    settled = mips.info.settle(release, {})

    assert settled == {"page_size": 4096, "mmu": mmu, "layout": layout, "cca": 5}


@pytest.mark.parametrize(
    ("release", "option"),
    [
        pytest.param((4, 11), {"mmu": "guestid"}, id="no-vz-yet"),
        pytest.param((4, 11), {"mmu": "rad"}, id="no-root-asid-yet"),
        pytest.param((5, 13), {"mmu": "te"}, id="no-trap-and-emulate"),
        pytest.param((5, 13), {"layout": "D"}, id="no-cpu-without-rixi"),
    ],
)
def test_what_a_release_does_not_have(mips, release, option):
    with pytest.raises(KvmarchError, match="mips has no"):
        mips.info.settle(release, option)


def test_before_v4_11_there_is_nothing(mips):
    with pytest.raises(KernelError, match=r"modelled from v4\.11 on"):
        plugins.link(mips, (4, 10))


def test_every_kernel_assembles(mips):
    for release in RELEASES:
        for name in [change.name for change in CHANGES]:
            if release >= (4, 11):
                plugins.link(mips, release, plus=[name])
                plugins.link(mips, release, minus=[name])


def test_entries_by_the_hooks(machine):
    one = machine()
    one.slot()
    one.access(0)
    k, options = one.k, one.options
    entry = one.entry(0)
    none, level = k.entry.fn(one.vm, 1 << 20)
    kinds = {(kind.level, kind.kind) for kind in k.formats.fn(k, options)}

    assert k.decode.fn(k, options, entry, 1)[0] == "leaf"
    assert k.decode.fn(k, options, none, level)[0] == "none"
    assert {(1, "leaf"), (level, "none")} <= kinds
    assert k.entry_pfn.fn(k, options, entry, 1) == one.pfn(0)
    assert k.entry_pfn.fn(k, options, none, level) is None
    assert k.entry_pfn.fn(k, options, 0, 1) is None
    assert (
        k.entry_pfn.fn(k, options, k.entry_repoint.fn(k, options, entry, 1, 0x12345), 1)
        == 0x12345
    )
    with pytest.raises(EntryError, match="leads to no page"):
        k.entry_repoint.fn(k, options, none, level, 1)


def test_the_tables_of_a_gfn(machine):
    one = machine()
    one.slot()
    one.access(0)
    places = [one.k.leaf_table.fn(one.vm, 0, level) for level in (1, 2, 3)]

    assert all(place[0] in one.vm.tables.live for place in places)
    assert one.k.leaf_table.fn(one.vm, 0, 4) is None
    assert one.k.leaf_table.fn(one.vm, 1 << 20, 3) == (places[2][0], 4)


def lose_nothing(mips, release, settings):
    k = plugins.link(mips, release)
    for path in library().values():
        scenario = load(path)
        if scenario.verdicts:
            # It says itself where what is lost, over all interleavings.
            continue
        for options in settings:
            played = play(scenario, k, options)
            assert played.violations == [], (scenario.name, options)
            assert played.outcome.end == "done"


@pytest.mark.parametrize("release", EDGES, ids=lambda r: f"v{r[0]}.{r[1]}")
def test_scenarios_with_every_mmu(mips, release):
    mmus = mips.info.options["mmu"].available(release)

    lose_nothing(mips, release, [mips.info.settle(release, {"mmu": m}) for m in mmus])


@pytest.mark.parametrize("release", [(5, 12), (7, 2)], ids=["v5.12", "v7.2"])
def test_scenarios_with_every_page_size_and_layout(mips, release):
    lose_nothing(mips, release, list(configurations(mips, release)))


@pytest.mark.parametrize("mmu", ["guestid", "rad", "te"])
def test_change_pte_in_every_release(mips, mmu):
    """Compare: installed up to v6.9; it saves the guest an exit in v5.12 alone."""
    scenario = load(library()["change_pte"])
    available = mips.info.options["mmu"].available
    shown = {}
    for release in [r for r in MODELLED if mmu in available(r)]:
        options = mips.info.settle(release, {"mmu": mmu})
        seen = Seen(play(scenario, plugins.link(mips, release), options), options)
        shown[release] = {
            column.name: value_of(column, seen) for column in scenario.columns
        }

    for release, row in shown.items():
        assert row["effect"] == ("installed" if release < (6, 10) else "absent")
        assert row["violations"] == "none"
        young = release == (5, 12) and mmu != "te"
        assert row["exits_on_reread"] == (0 if young else 1)
