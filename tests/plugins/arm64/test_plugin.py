"""The plugin as a whole: recording, scenarios, changes taken away."""

import pytest

from kvmarch import EntryError, KvmarchError, plugins
from kvmarch.changes import show_release
from kvmarch.plugins import Plugins, link
from kvmarch.recordings.conform import conform
from kvmarch.recordings.read import load, shipped
from kvmarch.scenarios.file import library
from kvmarch.scenarios.file import load as load_scenario
from kvmarch.scenarios.play import play

SOME = ((3, 16), (4, 4), (4, 15), (5, 4), (5, 11), (5, 18), (6, 1), (6, 8), (7, 2))

HARDWARE = (
    pytest.param({}, id="plain"),
    pytest.param({"fwb": "1", "tlbirange": "1", "dic": "1", "haf": "1"}, id="all"),
    pytest.param({"page_size": "16384", "tlbirange": "1"}, id="16K"),
    pytest.param({"page_size": "65536", "fwb": "1"}, id="64K"),
)


def test_every_tier(arm64):
    assert arm64.tier == max(plugins.hookspecs.TIERS)


def test_recording_agrees(arm64):
    (path,) = [p for p in shipped() if load(p).arch == "arm64"]

    findings = conform(load(path), Plugins([arm64], []))
    assert len(findings) > 100
    assert [f for f in findings if f.verdict != "agree"] == []


@pytest.mark.parametrize("options", HARDWARE)
@pytest.mark.parametrize("release", [pytest.param(r, id=show_release(r)) for r in SOME])
def test_scenarios_lose_nothing(arm64, release, options):
    k = link(arm64, release)
    settled = arm64.info.settle(release, options)

    for path in library().values():
        scenario = load_scenario(path)
        if scenario.schedule or scenario.verdicts:
            # A race by hand, or by search: what it loses is what it shows.
            continue
        played = play(scenario, k, settled)
        assert (scenario.name, played.violations) == (scenario.name, [])
        assert played.outcome.end == "done"


@pytest.mark.parametrize("release", [pytest.param(r, id=show_release(r)) for r in SOME])
def test_each_change_can_be_taken_away_or_added(arm64, release):
    tour = load_scenario(library()["tour"])
    settled = arm64.info.settle(release, {})

    for change in arm64.changes:
        which = "minus" if change.is_in(release) else "plus"
        k = link(arm64, release, **{which: [change.name]})
        assert play(tour, k, settled).outcome.end == "done"


@pytest.mark.parametrize(
    ("release", "kinds"),
    [
        pytest.param((5, 9), {"page", "empty"}, id="v5.9"),
        pytest.param((5, 10), {"page", "empty", "page-remains"}, id="v5.10"),
        pytest.param((5, 13), {"page", "empty", "owner"}, id="v5.13"),
        pytest.param((6, 2), {"page", "empty", "owner", "locked"}, id="v6.2"),
        pytest.param(
            (7, 1), {"page", "empty", "locked", "donation", "poisoned"}, id="v7.1"
        ),
    ],
)
def test_kinds_of_pages(arm64, release, kinds):
    k = link(arm64, release)
    rows = list(k.formats.fn(k, arm64.info.settle(release, {})))

    assert {row.kind for row in rows if row.level == 3} == kinds
    assert min(row.level for row in rows) == 1
    assert {row.kind for row in rows if row.maps} == {"page", "block"}


@pytest.mark.parametrize(
    ("release", "entry", "level", "pfn"),
    [
        pytest.param((6, 1), 0x00400000800007FF, 3, 0x80000, id="page"),
        pytest.param((6, 1), 0x00400000402007FD, 2, 0x40200, id="block"),
        pytest.param((6, 1), 0x0000000812345003, 2, None, id="table"),
        pytest.param((6, 1), 0, 3, None, id="empty"),
        pytest.param((5, 10), 0x00400000800007FE, 3, 0x80000, id="remains"),
    ],
)
def test_page_of_an_entry(arm64, release, entry, level, pfn):
    k, options = link(arm64, release), arm64.info.settle(release, {})

    assert k.entry_pfn.fn(k, options, entry, level) == pfn
    if pfn is not None:
        moved = k.entry_repoint.fn(k, options, entry, level, pfn ^ 0x10000)
        assert k.entry_pfn.fn(k, options, moved, level) == pfn ^ 0x10000
        assert moved ^ entry == 0x10000 << 12


@pytest.mark.parametrize(
    ("release", "options", "levels", "root_pages"),
    [
        pytest.param((4, 15), {}, 3, 2, id="v4.15 always 40 bits"),
        pytest.param((6, 1), {}, 3, 2, id="40 bits"),
        pytest.param((6, 1), {"ipa": "32"}, 2, 4, id="32 bits"),
        pytest.param((6, 1), {"ipa": "44"}, 4, 1, id="44 bits"),
        pytest.param(
            (6, 8), {"ipa": "52", "parange": "52", "lpa2": "1"}, 4, 16, id="LPA2"
        ),
        pytest.param((6, 1), {"page_size": "65536"}, 2, 1, id="64K"),
    ],
)
def test_tables_of_a_vm(machine, release, options, levels, root_pages):
    m = machine(release, **options)
    m.slot()
    m.access(0)

    assert m.mmu.geometry.levels == levels == len(m.vm.tables.live)
    root = m.vm.tables.at(m.mmu.pgt)
    assert root.size == root_pages * m.mmu.entries
    assert root.pa % (root.size * 8) == 0
    assert m.lost == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"ipa": 48}, "the limit is 44", id="beyond PARange"),
        pytest.param({"eager_split": 32 << 20}, "no block size", id="chunk of 16K"),
        pytest.param({"lpa2": 1, "page_size": 65536}, "LPA2", id="LPA2 with 64K"),
    ],
)
def test_options_that_contradict_each_other(machine, options, message):
    with pytest.raises(KvmarchError, match=message):
        machine((6, 12), **options)


def test_entry_of_no_kind(arm64):
    k, options = link(arm64, (6, 1)), arm64.info.settle((6, 1), {})

    assert k.decode.fn(k, options, 0x800, 3) == ("unknown", {})
    with pytest.raises(EntryError):
        k.decode.fn(k, options, 0, 4)


def test_live_entry_that_changes_its_page_is_reported(machine):
    m = machine((6, 1))
    m.slot()
    m.access(0)

    m.change(0, m.entry(0) ^ 1 << 12)
    assert m.lost == ["break-before-make"]
