"""The page in a real browser: the player."""

import pytest

from kvmarch.page.html import page

pytestmark = pytest.mark.browser

SIGNS = "+\N{MINUS SIGN}\N{NOT EQUAL TO}\n"


@pytest.fixture
def player(view):
    """The small page's player, at the race's first step."""
    view.choose("#player-scenario", "raced")
    view.one(".lanes").send_keys("")
    view.js("document.querySelector('.lanes').focus()")
    view.press("home")
    return view


def test_keys_step_forward_and_back(player):
    assert player.where.startswith("0 of ")
    assert player.text(".live") == "Before the first step."

    player.press("arrow_right")
    player.press("arrow_right")
    assert player.where.startswith("2 of ")

    player.press("arrow_left")
    assert player.where.startswith("1 of ")
    assert player.text(".live").startswith("Step 1 of ")
    assert player.shown("tr.current th") == ["1"]


def test_buttons_step_forward_and_back(player):
    forward = next(b for b in player.all(".controls button") if "forward" in b.text)
    back = next(b for b in player.all(".controls button") if "back" in b.text)

    forward.click()
    forward.click()
    back.click()

    assert player.where.startswith("1 of ")


def test_the_ends_are_ends(player):
    player.press("arrow_left")
    assert player.where.startswith("0 of ")

    player.press("end")
    last = player.where
    player.press("arrow_right")
    assert player.where == last
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
    count = int(player.where.partition(" of ")[2])
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


def test_a_schedule_that_goes_round_goes_on(open_page, gather, raced, tmp_path):
    data = gather(raced).data
    trace = data["traces"][0]
    trace.update(cycle=3, lost=[["ends", "they go on"]])
    path = tmp_path / "round.html"
    path.write_text(page(data, "round"))
    view = open_page(path)
    view.js("document.querySelector('.lanes').focus()")

    view.press("c")
    assert view.where.startswith("3 of ")
    view.press("end")
    assert "ends is lost: they go on" in view.text(".live")
    view.press("arrow_right")
    assert view.where.startswith("3 of ")
    last = len(trace["steps"])
    says = f"↻ from here on for ever: steps 3 to {last}, again and again"
    assert view.shown(".lanes tr.cycle") == [says]
    assert [b.text for b in view.all(".controls button")][-1] == "↻ cycle"


def test_only_the_part_of_a_run_that_changes_is_marked(
    open_page, gather, compared, tmp_path
):
    data = gather(compared).data
    trace = data["traces"][0]

    def table(*rows):
        numbered = []
        for row in rows:
            data["texts"] += row
            numbered.append(list(range(len(data["texts"]) - 6, len(data["texts"]))))
        return {"level": 1, "base": "0x0", "state": "live", "rows": numbered}

    for frame in (trace["start"], *trace["steps"]):
        frame.pop("T", None)
        frame.pop("G", None)
    trace["start"]["T"] = {"0x1": table(["0x0-0x3", "0x7…", "page", "", "", "p"])}
    trace["steps"][0]["T"] = {
        "0x1": table(
            ["0x0", "0x7", "page", "", "", "p"],
            ["0x1", "0x8", "page", "", "", "q"],
            ["0x2-0x3", "0x9…", "page", "", "", "p"],
            ["0x5", "0x9", "page", "", "", "p"],
        )
    }
    path = tmp_path / "split.html"
    path.write_text(page(data, "split"))
    view = open_page(path)
    view.js("document.querySelector('.lanes').focus()")
    view.press("home")

    view.press("t")

    assert view.where.startswith("1 of ")
    before, after = [
        [item.get_attribute("class") for item in tree.find_elements("tag name", "li")]
        for tree in view.all(".trees > div")
    ]
    assert before == ["entry changed"]
    assert after == ["entry same", "entry changed", "entry same", "entry added"]
    for sign in view.all(".trees li:not(.same) > .sign, .state tr:not(.same) .sign"):
        place = sign.rect
        [text] = view.js(
            "const range = document.createRange();"
            "range.selectNodeContents(arguments[0]);"
            "return [...range.getClientRects()].map((r) => [r.left, r.right]);",
            sign,
        )
        assert place["x"] - 1 <= text[0] <= text[1] <= place["x"] + place["width"] + 1


def test_rows_that_share_are_cut_where_they_differ(
    open_page, gather, compared, tmp_path
):
    data = gather(compared).data
    trace = data["traces"][0]

    def numbers(*texts):
        data["texts"] += texts
        return list(range(len(data["texts"]) - len(texts), len(data["texts"])))

    def rows(*told):
        return numbers(
            *(text for label, said in told for text in ("host", label, said))
        )

    for frame in (trace["start"], *trace["steps"]):
        frame.pop("s", None)
        frame.pop("g", None)
    trace["start"]["s"] = rows(
        ("page 0x1", "refs 1"),
        ("page 0x2", "refs 2"),
        ("page 0x3-0x9", "refs 1"),
        ("PTE of vpn 0x1-0x2", "pfn 0x1…"),
        ("page 0x20", "gone soon"),
    )
    [*gone] = [trace["start"]["s"][n : n + 2] for n in range(0, 15, 3)]
    trace["steps"][0]["g"] = [number for key in gone for number in key]
    trace["steps"][0]["s"] = rows(
        ("page 0x1-0x8", "refs 1"),
        ("page 0x10", "new"),
        ("PTE of vpn 0x1", "pfn 0x1"),
    )
    path = tmp_path / "cut.html"
    path.write_text(page(data, "cut"))
    view = open_page(path)
    view.js("document.querySelector('.lanes').focus()")
    view.press("home")

    view.press("arrow_right")

    shown = [
        (row.get_attribute("class"), row.text.lstrip(SIGNS).split(", ")[0].rstrip())
        for row in view.all(".state tr")
    ]
    assert shown == [
        ("same", "page 0x1 refs 1"),
        ("changed", "page 0x2"),
        ("same", "page 0x3-0x8 refs 1"),
        ("removed", "page 0x9"),
        ("added", "page 0x10"),
        ("removed", "page 0x20"),
        ("added", "PTE of vpn 0x1"),
        ("removed", "PTE of vpn 0x1-0x2"),
    ]


def test_a_link_opens_a_step(open_page, small):
    view = open_page(small)
    view.driver.get("about:blank")
    view.driver.get(f"{small.as_uri()}#play=0&step=3")

    assert view.where.startswith("3 of ")


def test_a_link_to_nothing_opens_the_page(open_page, small):
    view = open_page(small)
    view.driver.get("about:blank")
    view.driver.get(f"{small.as_uri()}#play=999&step=x")

    assert " of " in view.where
    assert view.driver.get_log("browser") == []
