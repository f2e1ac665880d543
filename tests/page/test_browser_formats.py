"""The page in a real browser: entry formats."""

import pytest

pytestmark = pytest.mark.browser


def test_two_releases_are_laid_over_each_other(formats):
    formats.choose("#formats-arch", "x86")
    formats.choose("#formats-after", "v6.12")

    leaf = formats.all("#formats-list .kind")[0]
    labels = [
        b.get_attribute("aria-label")
        for b in leaf.find_elements("css selector", ".bits.moved, .bits.added")
    ]
    assert {r.text for r in leaf.find_elements("css selector", ".release")} == {
        "v5.4",
        "v6.12",
    }
    assert any(label.endswith(", moved") for label in labels)


def test_every_bit_is_drawn_once(formats):
    spans = formats.js(
        """
        return [...document.querySelectorAll("#formats-list .strip")].map((strip) =>
          [...strip.children].reduce((sum, cell) =>
            sum + Number(cell.style.gridColumn.match(/span (\\d+)/)[1]), 0));
        """
    )
    assert spans
    assert set(spans) == {32}


def test_a_field_that_has_the_focus_says_what_it_means(formats):
    field = formats.all("#formats-list button.bits")[0]

    formats.js("arguments[0].focus()", field)

    told = formats.shown("#formats-list .detail")[0]
    assert field.text.split("=")[0].split()[-1] in told
    formats.press("arrow_right")
    assert formats.shown("#formats-list .detail")[0] != told


def test_bits_that_are_alike_in_both_are_drawn_once(formats):
    formats.choose("#formats-arch", "x86")

    for kind in formats.all("#formats-list .kind"):
        releases = [r.text for r in kind.find_elements("css selector", ".release")]
        marked = kind.find_elements("css selector", ".bits:not(.same):not(.none)")
        only = kind.find_elements("css selector", ".badge")
        assert bool(marked) == bool({"v5.4", "v6.12"} <= set(releases))
        assert not (marked and only)
