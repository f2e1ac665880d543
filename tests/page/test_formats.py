import json

import pytest

from kvmarch.changes import RELEASES, find_release
from kvmarch.page.formats import formats_data
from kvmarch.plugins import link
from kvmarch.plugins import load as load_plugins
from kvmarch.scenarios.compare import Choose

PLUGINS = load_plugins()


@pytest.fixture(scope="module")
def data():
    return formats_data(PLUGINS, Choose())


def machine_of(data, arch, **settings):
    [found] = [a for a in data["archs"] if a["name"] == arch]
    return next(m for m in found["machines"] if m["settings"] == settings)


def fields_at(data, machine, release, kind, level):
    number = machine["sets"][data["releases"].index(release)]
    [format_] = [row[2] for row in data["sets"][number] if row[:2] == [level, kind]]
    numbers = data["formats"][format_]["fields"]
    return {data["fields"][n]["name"]: data["fields"][n] for n in numbers}


def test_every_architecture_is_there_with_every_release(data):
    assert [arch["name"] for arch in data["archs"]] == sorted(PLUGINS.loaded)
    assert len(data["releases"]) == len(RELEASES)
    for arch in data["archs"]:
        for machine in arch["machines"]:
            assert len(machine["sets"]) == len(RELEASES)


@pytest.mark.parametrize("release", ["v4.12", "v6.1", "v7.2"])
@pytest.mark.parametrize("arch", sorted(PLUGINS.loaded))
def test_fields_are_those_of_the_formats(data, arch, release):
    loaded, at = PLUGINS.get(arch), find_release(release)
    k = link(loaded, at)
    machine = machine_of(data, arch)

    for kind in k.formats.fn(k, loaded.info.settle(at, {})):
        shown = fields_at(data, machine, release, kind.kind, kind.level)
        assert {n: f["bits"] for n, f in shown.items()} == {
            n: f.bits for n, f in kind.format.fields.items()
        }


def test_a_release_that_has_no_such_machine_has_no_set(data):
    machine = machine_of(data, "mips")

    assert machine["sets"][0] == -1
    assert machine["sets"][-1] >= 0


def test_a_machine_that_shows_nothing_new_is_left_out(data):
    for arch in data["archs"]:
        sets = [machine["sets"] for machine in arch["machines"]]
        for number, mine in enumerate(sets):
            for other in sets[:number]:
                pairs = zip(other, mine, strict=True)
                assert any(new not in {-1, old} for old, new in pairs)


def test_fields_that_move_between_releases_are_seen(data):
    machine = machine_of(data, "x86")
    old = fields_at(data, machine, "v3.16", "leaf", 1)
    new = fields_at(data, machine, "v7.2", "leaf", 1)

    assert old["mmu_writable"]["bits"] != new["mmu_writable"]["bits"]


def test_options_that_are_given_hold_for_every_machine():
    choose = Choose(arch=("ppc",), options={"mmu": "hash"})

    [arch] = formats_data(PLUGINS, choose)["archs"]

    assert all(m["settings"]["mmu"] == "hash" for m in arch["machines"])


def test_an_architecture_from_outside_is_shown_as_any_other(toys):
    data = formats_data(toys, Choose())

    [arch] = data["archs"]
    assert arch["name"] == "toy"
    fields = fields_at(data, arch["machines"][0], "v7.2", "page", 1)
    assert fields["pfn"]["doc"] == "page frame number"
    assert fields["present"]["fixed"] == "0x1"
    json.dumps(data)
