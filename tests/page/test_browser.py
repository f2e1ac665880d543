"""The page in a real browser, headless and without a network."""

import pytest

from kvmarch.page.html import page

pytestmark = pytest.mark.browser


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


def test_it_says_what_made_it(open_page, gather, compared, tmp_path):
    path = tmp_path / "made.html"
    data = gather(compared).data
    path.write_text(page(data, "made", command="kvmarch report", day="2026-11-21"))

    made = open_page(path).shown(".made")

    version = data["version"]
    assert made == [f"Made with kvmarch {version} on 2026-11-21 by kvmarch report."]


@pytest.mark.parametrize(
    ("failed", "count", "is_open", "head"),
    [
        (True, 1, True, "1 failure"),
        (True, 30, None, "30 failures"),
        (False, 2, None, "2 remarks"),
    ],
)
def test_what_failed_and_what_was_cut_is_said_first(
    open_page, gather, compared, tmp_path, failed, count, is_open, head
):
    data = gather(compared).data
    data["notes"] = [[f"note <b>{n}</b>", failed] for n in range(count)]
    path = tmp_path / "noted.html"
    path.write_text(page(data, "noted"))

    view = open_page(path)

    assert view.shown(".notice summary") == [head]
    assert bool(view.one(".notice").get_attribute("open")) is bool(is_open)
    assert len(view.all(".notice li")) == count
    assert view.all(".notice.failed") == (view.all(".notice") if failed else [])


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
    assert view.shown(".panel, .post") == []
    assert view.shown(".empty") == ["The filter leaves nothing of this."] * 2


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


def test_a_command_says_which_machine(open_page, gather, compared, tmp_path):
    data = gather(compared).data
    for row in data["scenarios"][0]["comparison"]["rows"]:
        row["machine"] = "+this -that mmu=other"
    path = tmp_path / "machine.html"
    path.write_text(page(data, "machine"))
    view = open_page(path)

    view.all(".compare .value")[0].click()

    command = "kvmarch compare compared -a toy -k v7.2"
    options = "--with this --without that --set mmu=other"
    assert view.shown("#compare-list .command") == [f"{command} {options}"]


def test_a_schedule_is_played_by_keys_alone(view):
    view.js("document.querySelector('#compare-list .scroll').focus()")

    view.press("tab")
    assert view.focused.get_attribute("class") == "value"
    view.press("arrow_down")
    view.press("tab")
    assert view.focused.text.startswith("Play on ")
    view.press("enter")

    assert view.focused == view.one(".lanes")
    assert view.where.startswith("0 of ")
    view.press("arrow_right")
    assert view.where.startswith("1 of ")


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
    bad = "vm.mmu_invalidate_in_progress > 0"
    assert f"It is lost if {bad}, asked after each step." in detail


@pytest.mark.parametrize(
    ("row", "label", "marks"),
    [
        ({"met": True}, "lost always, 6 steps, as expected: play", ["mark met"]),
        ({"met": False}, "lost always, 6 steps, expected always", ["mark failed"]),
        (
            {"met": None, "verdict": "unknown", "steps": 0},
            "lost unknown, expected always, not decided",
            [],
        ),
    ],
)
def test_a_verdict_says_whether_it_was_expected(
    open_page, gather, raced, tmp_path, row, label, marks
):
    data = gather(raced).data
    rows = data["scenarios"][0]["cells"][0]["rows"]
    [counted] = [each for each in rows if each["property"] == "counted"]
    counted.update({"steps": 6, **row})
    path = tmp_path / "verdict.html"
    path.write_text(page(data, "verdict"))
    view = open_page(path)

    view.open("#races-list details.panel")

    [verdict] = [b for b in view.all(".verdict") if "counted" in b.text]
    assert verdict.get_attribute("aria-label").startswith(f"counted {label}")
    found = verdict.find_elements("css selector", ".mark")
    assert [mark.get_attribute("class") for mark in found] == marks
