"""What an architecture says of itself: options, their values and their times."""

import pytest

from kvmarch.arch import ArchInfo, Option
from kvmarch.errors import KernelError, UnknownNameError

INFO = ArchInfo(
    name="a",
    title="A",
    first=(4, 0),
    options={
        "page_size": Option((4096, 65536), "bytes of a page"),
        "mmu": Option(
            ("rmap", "tdp", "shadow"),
            "the kind of tables",
            since={"tdp": (5, 10)},
            until={"shadow": (5, 0)},
        ),
        "ad": Option((1, 0), "accessed and dirty bits"),
        "late": Option(("new", "old"), "a value that came late", since={"new": (6, 0)}),
    },
    defaults={"mmu": (((5, 15), "tdp"),)},
)


@pytest.mark.parametrize(
    ("release", "given", "settled"),
    [
        pytest.param((4, 4), {}, (4096, "rmap", 1, "old"), id="oldest"),
        pytest.param((5, 14), {}, (4096, "rmap", 1, "old"), id="before-default"),
        pytest.param((5, 15), {}, (4096, "tdp", 1, "old"), id="default"),
        pytest.param((6, 0), {}, (4096, "tdp", 1, "new"), id="newest"),
        pytest.param((6, 0), {"mmu": "rmap"}, (4096, "rmap", 1, "new"), id="given"),
        pytest.param((6, 0), {"ad": "0"}, (4096, "tdp", 0, "new"), id="number"),
        pytest.param((6, 0), {"ad": "0x0"}, (4096, "tdp", 0, "new"), id="hexadecimal"),
        pytest.param(
            (6, 0), {"page_size": "64K"}, (65536, "tdp", 1, "new"), id="kibibytes"
        ),
        pytest.param(
            (6, 0), {"page_size": "65536"}, (65536, "tdp", 1, "new"), id="bytes"
        ),
        pytest.param((4, 4), {"mmu": "shadow"}, (4096, "shadow", 1, "old"), id="until"),
    ],
)
def test_options_are_settled(release, given, settled):
    assert tuple(INFO.settle(release, given).values()) == settled


@pytest.mark.parametrize(
    ("release", "given", "error", "message"),
    [
        pytest.param(
            (6, 0),
            {"color": "red"},
            UnknownNameError,
            "unknown option of a 'color'; there is page_size, mmu, ad, late",
            id="option",
        ),
        pytest.param(
            (6, 0),
            {"mmu": "odd"},
            UnknownNameError,
            "unknown value of a option mmu 'odd'; there is rmap, tdp, shadow",
            id="value",
        ),
        pytest.param(
            (6, 0),
            {"page_size": "16K"},
            UnknownNameError,
            "unknown value of a option page_size '16K'; there is 4096, 65536",
            id="page-size",
        ),
        pytest.param(
            (6, 0), {"ad": "yes"}, UnknownNameError, "there is 1, 0", id="no-number"
        ),
        pytest.param((6, 0), {"ad": ""}, UnknownNameError, "there is 1, 0", id="empty"),
        pytest.param(
            (6, 0), {"ad": "0x"}, UnknownNameError, "there is 1, 0", id="half-a-number"
        ),
        pytest.param(
            (5, 9),
            {"mmu": "tdp"},
            KernelError,
            r"a has no mmu=tdp in v5\.9",
            id="since",
        ),
        pytest.param(
            (5, 0),
            {"mmu": "shadow"},
            KernelError,
            r"a has no mmu=shadow in v5\.0",
            id="until",
        ),
    ],
)
def test_what_cannot_be_settled(release, given, error, message):
    with pytest.raises(error, match=message):
        INFO.settle(release, given)


def test_values_have_their_time():
    option = INFO.options["mmu"]

    assert option.available((4, 4)) == ("rmap", "shadow")
    assert option.available((5, 0)) == ("rmap",)
    assert option.available((5, 10)) == ("rmap", "tdp")


def test_an_unknown_name_says_what_there_is():
    error = UnknownNameError("thing", "x", ["a", "b"])

    assert str(error) == "unknown thing 'x'; there is a, b"
    assert (error.kind, error.name, error.known) == ("thing", "x", ["a", "b"])
