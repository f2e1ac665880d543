"""The page in a real browser, headless and without a network."""

import pytest

from kvmarch.page.html import page

pytestmark = pytest.mark.browser


@pytest.fixture
def player(view):
    """The small page's player, at the race's first step."""
    view.choose("#player-scenario", "raced")
    view.one(".lanes").send_keys("")
    view.js("document.querySelector('.lanes').focus()")
    view.press("home")
    return view


# -- loading -----------------------------------------------------------------------


def test_it_loads_without_a_word(view):
    assert view.driver.get_log("browser") == []
    assert view.driver.title == "small"


def test_it_asks_no_network(view):
    import json

    asked = [
        message["params"]["request"]["url"]
        for entry in view.driver.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]

    assert [url for url in asked if not url.startswith(("data:", "about:"))] == [
        view.driver.current_url
    ]


def test_texts_from_scenarios_are_no_markup(view):
    assert view.shown("#compare-list .title") == ["a </script> scenario"]


def test_every_header_of_a_table_has_a_scope(view):
    view.one("#open-all").click()

    assert view.all("th")
    assert view.all("th:not([scope])") == []
    assert view.js(
        "return [...document.querySelectorAll('table')].every(t => t.caption || "
        "t.closest('details.fields'))"
    )


def test_everything_that_takes_the_focus_has_a_name(view):
    view.one("#open-all").click()

    nameless = view.js(
        """
        const named = (e) => e.textContent.trim() || e.getAttribute("aria-label")
          || e.labels?.length || e.title;
        return [...document.querySelectorAll("button, select, input, [tabindex]")]
          .filter((e) => !named(e)).map((e) => e.outerHTML);
        """
    )
    assert nameless == []


# -- filter ------------------------------------------------------------------------


def counted(view):
    return view.text("#filter-count")


def test_text_filters_rows(view):
    assert counted(view) == "4 rows of 2 scenarios"

    view.one("#filter-text").send_keys("callback")

    assert counted(view) == "1 row of 1 scenario"
    assert view.shown("#compare-list th.quantity") == ["quantity", "callback"]
    assert view.shown("#races-list .panel") == []


def test_text_that_nothing_has_leaves_nothing(view):
    view.one("#filter-text").send_keys("nowhere to be found")

    assert counted(view) == "0 rows of 0 scenarios"
    assert view.shown(".panel") == []


def test_releases_filter_columns(view):
    view.choose("#filter-from", "v6.9")

    heads = view.shown(".compare thead th")
    assert heads == ["quantity", "arch", "v6.9", "v6.12", "v6.15", "v7.2"]


def test_the_range_of_releases_is_never_upside_down(view):
    view.choose("#filter-to", "v4.4")
    view.choose("#filter-from", "v6.9")

    assert view.shown(".compare thead th") == ["quantity", "arch", "v6.9"]


def test_architectures_filter_rows(view):
    view.one("#filter-archs input[value=toy]").click()

    assert counted(view) == "0 rows of 0 scenarios"


def test_only_what_differs(view):
    view.one("#filter-differs").click()

    assert view.shown("#compare-list th.quantity") == ["quantity", "callback"]


# -- comparison --------------------------------------------------------------------


def test_equal_neighbours_are_one_cell(view):
    view.one("#filter-text").send_keys("callback")

    assert view.shown(".compare .value > span:first-child") == ["present", "absent"]
    spans = [cell.get_attribute("colspan") for cell in view.all(".compare td")]
    assert spans == ["14", "3"]


def test_expectations_are_marked_and_told(view):
    view.one("#filter-text").send_keys("callback")
    first = view.all(".compare .value")[0]

    first.click()

    assert "as expected" in view.js("return arguments[0].textContent", first)
    detail = view.shown("#compare-list .detail")[0]
    assert "As expected (it was there)." in detail
    assert "kvmarch compare compared -a toy -k v6.9" in detail


def test_arrow_keys_move_in_the_table(view):
    view.one("#filter-text").send_keys("callback")
    view.all(".compare .value")[0].click()

    view.press("arrow_right")

    assert view.focused.text.startswith("absent")
    assert "v6.12 to v7.2" in view.shown("#compare-list .detail")[0]


def test_a_failed_expectation_is_seen(open_page, gather, disappointed, tmp_path):
    path = tmp_path / "failed.html"
    path.write_text(page(gather(disappointed).data, "failed"), "utf-8")

    view = open_page(path)

    assert view.shown(".badge.failed") == ["an expectation fails"]
    assert "callback is 'present', expected 'absent'" in view.text("#problems")
    assert view.all(".compare td.failed")


# -- interleavings -----------------------------------------------------------------


def test_a_loss_is_played_from_its_verdict(view):
    view.open("#races-list details.panel")
    [verdict] = [b for b in view.all(".verdict") if "counted" in b.text]

    verdict.click()

    assert "counted is lost" in view.text(".live")
    view.wait(lambda: "#play=" in view.driver.current_url)
    detail = view.shown("#races-list .detail")[0]
    assert "kvmarch explain raced -a toy -k v6.1 --property counted" in detail


# -- player ------------------------------------------------------------------------


def where(view):
    return view.text(".where")


def test_keys_step_forward_and_back(player):
    assert where(player).startswith("0 of ")
    assert player.text(".live") == "Before the first step."

    player.press("arrow_right")
    player.press("arrow_right")
    assert where(player).startswith("2 of ")

    player.press("arrow_left")
    assert where(player).startswith("1 of ")
    assert player.text(".live").startswith("Step 1 of ")
    assert player.shown("tr.current th") == ["1"]


def test_buttons_step_forward_and_back(player):
    forward = next(b for b in player.all(".controls button") if "forward" in b.text)
    back = next(b for b in player.all(".controls button") if "back" in b.text)

    forward.click()
    forward.click()
    back.click()

    assert where(player).startswith("1 of ")


def test_the_ends_are_ends(player):
    player.press("arrow_left")
    assert where(player).startswith("0 of ")

    player.press("end")
    last = where(player)
    player.press("arrow_right")
    assert where(player) == last
    number, _, count = last.partition(" of ")
    assert number == count


def test_the_step_that_loses_the_property_is_marked(player):
    player.press("l")

    assert player.all("tr.loss.current")
    assert player.shown("tr.loss .lost") == ["✗ counted is lost"]
    assert "counted is lost" in player.text(".live")


def test_back_and_forth_shows_the_same_state(player):
    def state():
        return player.text(".state"), player.text(".changes")

    player.press("end")
    seen = [state()]
    count = int(where(player).partition(" of ")[2])
    for _ in range(count):
        player.press("arrow_left")
        seen.append(state())
    for before in reversed(seen[:-1]):
        player.press("arrow_right")
        assert state() == before


def test_the_state_beside_says_what_the_step_changes(player):
    player.press("l")

    changes = player.text(".changes")
    [changed] = [
        row.text
        for row in player.all(".state tr.changed")
        if "mmu_invalidate_in_progress" in row.text
    ]
    assert "vm.mmu_invalidate_in_progress 0 -> 1" in changes
    assert changed.split()[-3:] == ["0", "→", "1"]


def test_lanes_say_what_their_task_holds(player):
    player.press("l")

    assert "mmu_lock" in " ".join(player.shown(".lanes thead small"))


def test_tables_before_and_after_mark_what_changed(formats):
    formats.choose("#player-scenario", "change_pte")
    formats.js("document.querySelector('.lanes').focus()")
    formats.press("home")

    formats.press("t")

    before, after = formats.all(".trees > div")
    added = after.find_elements("css selector", ".entry.added, .table-of.added")
    assert added
    assert all("+" in element.text for element in added)
    assert not before.find_elements("css selector", ".entry:not(.same)")
    assert after.text.startswith("After step ")


def test_a_link_opens_a_step(open_page, small):
    view = open_page(small)
    view.driver.get("about:blank")
    view.driver.get(f"{small.as_uri()}#play=0&step=3")

    assert where(view).startswith("3 of ")


def test_a_link_to_nothing_opens_the_page(open_page, small):
    view = open_page(small)
    view.driver.get("about:blank")
    view.driver.get(f"{small.as_uri()}#play=999&step=x")

    assert " of " in where(view)
    assert view.driver.get_log("browser") == []


# -- formats -----------------------------------------------------------------------


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
