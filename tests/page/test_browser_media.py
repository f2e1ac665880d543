"""The page in a real browser: themes, paper, windows of any width, keyboard."""

from itertools import pairwise

import pytest

pytestmark = pytest.mark.browser


def paper(view):
    return view.js("return getComputedStyle(document.body).backgroundColor")


def test_dark_and_light_follow_the_system_and_the_toggle(view):
    light = paper(view)
    dark_system = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}

    view.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark_system)
    dark = paper(view)
    assert dark != light

    view.one("[data-theme-choice=light]").click()
    assert paper(view) == light
    view.one("[data-theme-choice=dark]").click()
    assert paper(view) == dark
    assert view.one("[data-theme-choice=dark]").get_attribute("aria-pressed") == "true"
    view.one("[data-theme-choice=auto]").click()
    assert paper(view) == dark


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_stand_out_from_their_ground(view, theme):
    view.one(f"[data-theme-choice={theme}]").click()
    ratios = view.js(
        """
        const probe = document.body.appendChild(document.createElement("span"));
        const light = (name) => {
          probe.style.color = `var(${name})`;
          const [r, g, b] = getComputedStyle(probe).color.match(/\\d+/g).map((n) => {
            const c = n / 255;
            return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
          });
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const pairs = [["--ink", "--paper"], ["--faint", "--paper"],
          ["--faint", "--soft"], ["--ink", "--mark"], ["--link", "--paper"],
          ["--mark-ink", "--mark"], ["--loss", "--paper"], ["--loss", "--loss-soft"],
          ["--gain", "--gain-soft"], ["--loss", "--mark"]];
        return pairs.map(([a, b]) => {
          const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
          return [`${a} on ${b}`, (x + 0.05) / (y + 0.05)];
        });
        """
    )
    assert [pair for pair, ratio in ratios if ratio < 4.5] == []
    view.one("[data-theme-choice=auto]").click()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_was_before_can_be_read(view, theme):
    view.one(f"[data-theme-choice={theme}]").click()
    view.choose("#player-scenario", "raced")
    view.js("document.querySelector('.lanes').focus()")
    view.press("l")

    style = (
        "const s = getComputedStyle(arguments[0]); return [s.color, s.textDecoration]"
    )
    [was, *_] = view.all(".state tr.changed del")
    [row, *_] = view.all(".state tr.changed")
    color, decoration = view.js(style, was)
    assert color == view.js(style, row)[0]
    assert "line-through" in decoration
    view.one("[data-theme-choice=auto]").click()


def test_on_paper_everything_is_open_and_controls_are_gone(view):
    view.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    view.js("window.dispatchEvent(new Event('beforeprint'))")

    assert view.all("details:not([open])") == []
    assert view.shown(".filter, .controls, .theme, #formats-form") == []
    assert len(view.shown(".compare")) == 1
    assert len(view.shown(".races")) == 1
    lanes = view.one(".lanes")
    assert view.js(
        "return arguments[0].scrollHeight - arguments[0].clientHeight", lanes
    ) in range(3)
    assert paper(view) == "rgb(255, 255, 255)"

    view.js("window.dispatchEvent(new Event('afterprint'))")
    view.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert view.all("details:not([open])")


def test_it_prints(view):
    printed = view.driver.execute_cdp_cmd("Page.printToPDF", {})

    assert printed["data"].startswith("JVBERi0")
    assert view.driver.get_log("browser") == []


def test_a_narrow_window_needs_no_scrolling_sideways(formats):
    formats.resize(500, 900)

    width, inside = formats.js(
        "return [innerWidth, document.documentElement.scrollWidth]"
    )
    assert inside <= width
    strip = "return document.querySelector('.strip').style.gridTemplateColumns"
    assert formats.js(strip).startswith("repeat(16,")


def test_a_table_scrolls_sideways_only_if_it_must(formats):
    [table] = formats.all("#compare-list .scroll")

    def scrolls():
        return formats.js(
            "return arguments[0].scrollWidth > arguments[0].clientWidth", table
        )

    formats.resize(500, 900)
    assert scrolls() is False
    formats.js("arguments[0].firstChild.style.width = '600px'", table)
    assert scrolls() is True


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(view, theme):
    axe = pytest.importorskip("selenium_axe_python").Axe(view.driver)
    view.driver.set_script_timeout(300)
    view.one(f"[data-theme-choice={theme}]").click()
    view.one("#open-all").click()
    view.js("document.querySelectorAll('details').forEach(e => { e.open = true })")
    axe.inject()

    found = axe.run()

    assert axe.report(found["violations"]).startswith("Found 0 ")
    assert len(found["passes"]) > 30
    view.js("document.querySelector('#filter-text').parentElement.ariaHidden = true")
    assert axe.run(options={"runOnly": ["aria-hidden-focus"]})["violations"]
    view.one("[data-theme-choice=auto]").click()


@pytest.mark.parametrize("width", [500, 800, 1400])
def test_names_of_fields_fit_into_their_bits(formats, width):
    formats.resize(width, 900)
    formats.choose("#formats-arch", "x86")

    outside = formats.js(
        """
        const over = (b) =>
          b.scrollWidth > b.clientWidth || b.scrollHeight > b.clientHeight;
        return [...document.querySelectorAll("#formats-list button.bits")]
          .filter(over).map((b) => b.textContent);
        """
    )
    assert outside == []


def test_the_first_tab_offers_to_skip(view):
    from selenium.webdriver.common.keys import Keys

    view.one("body").send_keys(Keys.TAB)

    assert view.focused.text == "Skip to the content"
    outline = view.js("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_tab_follows_the_order_of_the_page(view):
    from selenium.webdriver.common.keys import Keys

    view.one("body").send_keys(Keys.TAB)
    seen = []
    for _ in range(25):
        seen.append(view.focused)
        view.focused.send_keys(Keys.TAB)

    following = "return !!(arguments[0].compareDocumentPosition(arguments[1]) & 4)"
    assert all(view.js(following, one, other) for one, other in pairwise(seen))
