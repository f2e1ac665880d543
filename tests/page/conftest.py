"""Fixtures of the page's tests: work on the toy, and pages made of it."""

import shutil

import pytest

from kvmarch.page.collect import collect
from kvmarch.page.html import page
from kvmarch.page.work import do_job, jobs_of
from kvmarch.plugins import load as load_plugins
from kvmarch.scenarios.cells import How
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.file import library, load

COMPARED = """
title = "a </script> scenario"
tags = ["mine"]
watch = [0]
[vm]
memory = [{ name = "ram", pages = 4, contents = [7, 7] }]
[[task]]
name = "vmm"
steps = [
    "slot id=0 memory=ram gfn=0",
    "read gfn=0",
    "read gfn=2",
    "mark name=merge",
    "ksm_merge memory=ram page=0 pages=2",
    "read gfn=0",
]
[[column]]
name = "callback"
show = "callback"
event = "change_pte_done"
[[column]]
name = "entry_before"
show = "entry"
after = "merge"
[[expect]]
until = "v6.10"
values = { callback = "present" }
because = "it was there"
[[expect]]
since = "v6.10"
values = { callback = "absent" }
because = "it was removed"
"""

RACED = """
title = "two tasks"
tags = ["post-1"]
setup = ["slot id=0 memory=ram gfn=0", "read gfn=0"]
[vm]
memory = [{ name = "ram", pages = 2 }]
[[task]]
name = "host"
steps = ["dontneed memory=ram page=0 pages=1"]
[[task]]
name = "guest"
steps = ["read gfn=0"]
[property.counted]
ask = "always"
bad = "vm.mmu_invalidate_in_progress > 0"
[[verdict]]
kernel = "v6.1"
property = "counted"
verdict = "always"
because = "the host zaps"
"""


@pytest.fixture
def compared(scenario):
    """A scenario that is compared."""
    return scenario(COMPARED, "compared")


@pytest.fixture
def disappointed(scenario):
    """The same, with an expectation that fails."""
    expected = 'until = "v6.10"\nvalues = { callback = "present" }'
    assert expected in COMPARED
    wrong = COMPARED.replace(expected, expected.replace("present", "absent"))
    return scenario(wrong, "disappointed")


@pytest.fixture
def raced(scenario):
    """A scenario whose tasks race, and in which something is lost."""
    return scenario(RACED, "raced")


@pytest.fixture
def raced_at_rest(scenario):
    """The same, with a property that is asked at the end."""
    return scenario(RACED.replace('"always"\nbad', '"at-rest"\nbad'), "at_rest")


@pytest.fixture
def raced_wrongly(scenario):
    """The same, with an expectation that fails."""
    return scenario(RACED.replace('"always"\nbecause', '"never"\nbecause'), "wrongly")


@pytest.fixture
def do(toys):
    """Do all the work for a scenario; return the results."""

    def make(loaded, choose=None, how=None):
        jobs = jobs_of(loaded, toys, choose or Choose(), how or How())
        return [do_job(job, toys) for job in jobs]

    return make


@pytest.fixture
def gather(toys):
    """Collect what a page shows of scenarios, on the toy."""

    def make(*scenarios, choose=None, **options):
        return collect(scenarios, toys, choose or Choose(), How(), **options)

    return make


# -- in a browser ------------------------------------------------------------------

ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--window-size=1400,1000",
)
WIDE = (1400, 1000)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A headless Chromium with an empty profile."""
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed"
    )
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("there is no chromium with a chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    service = webdriver.ChromeService(driver)
    started = webdriver.Chrome(options=options, service=service)
    yield started
    started.quit()


@pytest.fixture
def small(gather, compared, raced, tmp_path):
    """A page of two scenarios on the toy."""
    path = tmp_path / "small.html"
    path.write_text(page(gather(compared, raced).data, "small"), "utf-8")
    return path


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A page of one scenario on two installed architectures."""
    plugins = load_plugins()
    choose = Choose(arch=("arm64", "x86"), kernel=("v5.4", "v6.9", "v6.12"))
    scenario = load(library()["change_pte"])
    data = collect([scenario], plugins, choose, How()).data
    path = tmp_path_factory.mktemp("page") / "real.html"
    path.write_text(page(data, "real"), "utf-8")
    return path


class View:
    """A page that is open."""

    def __init__(self, driver, path):
        self.driver = driver
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        driver.get("about:blank")
        self._resize(*WIDE)
        driver.get_log("browser")
        driver.get_log("performance")
        driver.get(path.as_uri())
        self.js("document.documentElement.style.scrollBehavior = 'auto'")

    def js(self, script, *arguments):
        """Run a script; return what it returns."""
        return self.driver.execute_script(script, *arguments)

    def all(self, selector):
        """Return the elements that a selector finds."""
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        """Return the only element that a selector finds."""
        [found] = self.all(selector)
        return found

    def shown(self, selector):
        """Return the texts of what a selector finds and can be seen."""
        return [e.text for e in self.all(selector) if e.is_displayed()]

    def text(self, selector):
        """Return the text of an element, seen or not."""
        return self.js("return arguments[0].textContent", self.one(selector))

    def wait(self, condition):
        """Wait until a condition holds; fail if it does not soon."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 60).until(lambda _driver: condition())

    def open(self, selector):
        """Open a panel as a user does; its inside is there soon after the click."""
        panel = self.one(selector)
        if not panel.get_attribute("open"):
            panel.find_element("css selector", "summary").click()
        self.wait(lambda: panel.find_elements("css selector", ".body > *"))

    def resize(self, width, height):
        """Give the window a size; the diagrams are drawn again when this returns."""
        mark = "document.querySelector('#formats-list').firstElementChild.id = 'old'"
        if self.js("return innerWidth") != width:
            self.js(mark)
        self._resize(width, height)
        self.wait(lambda: not self.all("#old"))

    def _resize(self, width, height):
        self.driver.set_window_size(width, height)
        self.wait(lambda: self.js("return innerWidth") == width)

    def press(self, key):
        """Press a key where the focus is."""
        from selenium.webdriver.common.keys import Keys

        name = getattr(Keys, key.upper(), key)
        self.driver.switch_to.active_element.send_keys(name)

    def choose(self, selector, text):
        """Choose an option of a select by its text."""
        from selenium.webdriver.support.ui import Select

        Select(self.one(selector)).select_by_visible_text(text)

    @property
    def where(self):
        """Return what the player says of where it is."""
        return self.text(".where")

    @property
    def focused(self):
        """Return the element that has the focus."""
        return self.driver.switch_to.active_element


@pytest.fixture
def view(chromium, small):
    """The small page, open."""
    return View(chromium, small)


@pytest.fixture
def formats(chromium, real):
    """The page of installed architectures, open."""
    return View(chromium, real)


@pytest.fixture
def open_page(chromium):
    """Open a file in the browser."""

    def make(path):
        return View(chromium, path)

    return make
