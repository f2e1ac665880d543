"""Memslot generations by release (generic facts 2.10, 6)."""

from dataclasses import replace

import pytest
from regions import PAGE, apply, generation, region

from kvmarch.kernel.memory_region import set_memory_region
from kvmarch.kernel.memslots import LOG_DIRTY_PAGES

PUBLISH = "publish memslots unless an invalidation began"
U64 = 1 << 64


GENERATIONS = [
    pytest.param((3, 16), 2, [0, 1, 2, 4, 6], id="v3.16"),
    pytest.param((3, 17), 2, [U64 - 150 + n for n in (0, 2, 4, 8, 12)], id="v3.17"),
    pytest.param((4, 4), 1, [U64 - 150 + n for n in (0, 2, 4, 8, 12)], id="v4.4"),
    pytest.param((4, 15), 2, [U64 - 150 + n for n in (0, 4, 8, 16, 24)], id="v4.15"),
    pytest.param((5, 0), 1, [U64 - 150 + n for n in (0, 2, 4, 8, 12)], id="v5.0-1as"),
    pytest.param((5, 3), 2, [0, 2, 4, 8, 12], id="v5.3"),
    pytest.param((5, 3), 1, [0, 1, 2, 4, 6], id="v5.3-1as"),
    pytest.param((7, 2), 2, [0, 2, 4, 8, 12], id="v7.2"),
]


@pytest.mark.parametrize(("release", "spaces", "values"), GENERATIONS)
def test_create_flags_move_and_delete_move_the_generation(
    bench, toy, release, spaces, values
):
    info = replace(toy.info, address_spaces=spaces)
    one = bench(release, replaced={"arch_info": info})

    seen = [generation(one)]
    for fields in (
        {},
        {"flags": LOG_DIRTY_PAGES},
        {"flags": LOG_DIRTY_PAGES, "gpa": 8 * PAGE},
        {"size": 0},
    ):
        assert apply(one, **fields) == 0
        seen.append(generation(one))

    assert seen == values
    assert one.lost == []


@pytest.mark.parametrize(
    ("release", "as_id", "first"),
    [
        pytest.param((4, 4), 1, U64 - 150, id="v4.4-as1"),
        pytest.param((4, 15), 0, U64 - 150, id="v4.15-as0"),
        pytest.param((4, 15), 1, U64 - 148, id="v4.15-as1"),
        pytest.param((5, 3), 0, 0, id="v5.3-as0"),
        pytest.param((5, 3), 1, 1, id="v5.3-as1"),
    ],
)
def test_each_address_space_begins_with_its_own_generation(
    bench, two_spaces, release, as_id, first
):
    assert generation(bench(release, replaced=two_spaces), as_id) == first


def test_address_spaces_keep_their_residue(bench, two_spaces):
    one = bench((5, 3), replaced=two_spaces)
    seen = []
    for gfn in range(3):
        seen.append(generation(one, 1))
        apply(one, slot=1 << 16 | gfn, gpa=gfn * 4 * PAGE)

    assert seen == [1, 3, 5]
    assert generation(one, 0) == 0


@pytest.mark.parametrize(
    ("release", "publish", "in_flux"),
    [
        pytest.param((3, 16), "publish memslots", 3, id="v3.16"),
        pytest.param((4, 4), "publish memslots", U64 - 145, id="v4.4"),
        pytest.param((4, 15), "publish memslots", U64 - 141, id="v4.15"),
        pytest.param((5, 3), "publish memslots", 1 << 63 | 4, id="v5.3"),
        pytest.param((6, 1), PUBLISH, 1 << 63 | 4, id="v6.1"),
    ],
)
def test_the_generation_while_a_set_is_published(
    bench, two_spaces, release, publish, in_flux
):
    one = bench(release, replaced=two_spaces)
    apply(one)
    apply(one, slot=1, gpa=8 * PAGE)
    updater = one.actor("u", set_memory_region(one.vm, region(slot=2, gpa=16 * PAGE)))
    updater.past(publish)

    seen = generation(one)

    assert seen == in_flux
    updater.end()


def test_v4_4_counts_from_the_worked_values(bench):
    one = bench((4, 4))
    updater = one.actor("u", set_memory_region(one.vm, region()))
    seen = [generation(one)]
    updater.past("publish memslots")
    seen.append(generation(one))
    updater.end()
    seen.append(generation(one))

    assert [f"{g:x}" for g in seen] == [
        "ffffffffffffff6a",
        "ffffffffffffff6b",
        "ffffffffffffff6c",
    ]


@pytest.mark.parametrize(("release", "stored_first"), [((5, 0), True), ((5, 1), False)])
def test_the_architecture_hears_of_a_generation(bench, release, stored_first):
    heard = []

    async def updated(vm, told):
        heard.append((told, vm.memslots[0].generation == told))

    one = bench(release, replaced={"memslots_updated": updated})
    apply(one)

    assert heard == [(generation(one), stored_first)]


def test_an_update_in_flux_wraps_at_64_bits(bench):
    one = bench((4, 4))
    for _ in range(75):
        apply(one)
        apply(one, size=0)

    assert generation(one) == 75 * 6 - 150
