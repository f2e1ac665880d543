"""The contract: what a plugin may do wrong, and that each wrong is one clear line."""

import importlib.metadata
import re
from types import SimpleNamespace

import pytest
from altering import ASKED_ONCE, check, hook, info

from kvmarch import (
    API_VERSION,
    ArchVerb,
    Change,
    Choice,
    EntryFormat,
    Field,
    Option,
    hookimpl,
    plugins,
)
from kvmarch.errors import PluginError, UnknownNameError
from kvmarch.machine.steps import Op

API = ".".join(map(str, API_VERSION))


@hookimpl
def kvmarch_raises():
    raise ValueError("two\nlines")


def needing(change):
    choice = Choice("how", "how something is done")
    choice.add(1, change)
    return choice


def verbs(*rows):
    """Return a hook that brings verbs; each is what differs from one that is right."""
    right = {"name": "forget", "doc": "Forget a page.", "run": print, "params": {}}
    return hook("kvmarch_verbs", tuple(ArchVerb(**{**right, **row}) for row in rows))


# -- what is right -----------------------------------------------------------------


def test_the_toy_keeps_the_whole_contract(toy):
    assert (toy.name, toy.tier, toy.version) == ("toy", 5, "1.0")
    assert toy.distribution == "kvmarch-toy"
    assert toy.operations["unmap_gfn_range"].__name__ == "kvmarch_unmap_gfn_range"


@pytest.mark.parametrize(
    ("missing", "tier"),
    [
        pytest.param("vm_create", 1, id="formats-only"),
        pytest.param("set_spte_gfn", 2, id="faults"),
        pytest.param("dirty_log_masked", 3, id="aging"),
        pytest.param("flush_shadow_all", 4, id="memslots"),
        pytest.param("handle_request", 5, id="optional"),
    ],
)
def test_what_is_missing_sets_the_tier(altered, missing, tier):
    assert check(altered(**{f"kvmarch_{missing}": None})).tier == tier


def test_a_choice_is_an_operation(altered):
    choice = Choice("set_spte_gfn", "how an entry follows the host's")
    choice.add(lambda vm, slot, gfn, pte: None)
    module = altered(
        kvmarch_set_spte_gfn=None,
        kvmarch_choices=hook("kvmarch_choices", (choice,)),
    )

    loaded = check(module)

    assert loaded.tier == 5
    assert isinstance(plugins.link(loaded, (6, 1)).set_spte_gfn, Op)


@pytest.mark.parametrize("api", [(1, 0), API_VERSION])
def test_an_api_that_fits(altered, api):
    assert check(altered(KVMARCH_API=api)).tier == 5


def test_verbs_are_part_of_the_kernel(altered):
    rows = {"name": "forget"}, {"name": "forget_all"}
    loaded = check(altered(kvmarch_verbs=verbs(*rows)))

    assert sorted(plugins.link(loaded, (6, 1)).verbs) == ["forget", "forget_all"]
    assert plugins.link(check(altered()), (6, 1)).verbs == {}


WRONG_VERBS = [
    pytest.param(({}, {}), "verb 'forget' is there twice", id="twice"),
    pytest.param(({"name": "For get"},), "verb 'For get' must be a word", id="name"),
    pytest.param(({"name": 7},), "verb 7 must be a word", id="name-type"),
    pytest.param(({"doc": ""},), "verb 'forget' must say what it does", id="doc"),
    pytest.param(({"run": 7},), "run is int, not a function", id="run"),
    pytest.param(({"params": ["gfn"]},), "params is list, not a mapping", id="params"),
    pytest.param(({"params": {"g-n": "int"}},), "argument 'g-n' must be", id="param"),
    pytest.param(
        ({"params": {"gfn": "page"}},),
        "argument gfn is 'page'; there is int, name and word:this|that",
        id="kind",
    ),
    pytest.param(({"params": {"gfn": 1}},), "argument gfn is 1; there", id="kind-type"),
]


@pytest.mark.parametrize(("rows", "message"), WRONG_VERBS)
def test_a_verb_that_no_scenario_could_use_is_refused(altered, rows, message):
    with pytest.raises(PluginError) as refused:
        check(altered(kvmarch_verbs=verbs(*rows)))

    assert str(refused.value).startswith("plugin toy: hook kvmarch_verbs: verb ")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        pytest.param([], "hook kvmarch_verbs returned list, not tuple", id="list"),
        pytest.param(
            ("forget",), "returned a str among its ArchVerb rows", id="no-row"
        ),
    ],
)
def test_verbs_of_another_type_are_refused(altered, answer, message):
    with pytest.raises(PluginError, match=message):
        check(altered(kvmarch_verbs=hook("kvmarch_verbs", answer)))


# -- what is wrong -----------------------------------------------------------------


def overlapping():
    return type("Leaf", (EntryFormat,), {"one": Field(7, 4), "two": Field(5)})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param(
            {"KVMARCH_API": None},
            "plugin toy: KVMARCH_API must be a pair such as "
            + re.escape(str(API_VERSION)),
            id="no-api",
        ),
        pytest.param(
            {"KVMARCH_API": "1.0"}, "plugin toy: KVMARCH_API must be a pair", id="text"
        ),
        pytest.param(
            {"KVMARCH_API": (1,)}, "plugin toy: KVMARCH_API must be a pair", id="one"
        ),
        pytest.param(
            {"KVMARCH_API": (2, 0)},
            r"plugin toy: wants API 2\.0; this is API " + re.escape(API),
            id="other-major",
        ),
        pytest.param(
            {"KVMARCH_API": (1, 99)},
            r"plugin toy: wants API 1\.99; this is API " + re.escape(API),
            id="newer-minor",
        ),
        pytest.param(
            {"KVMARCH_API": (0, 9)}, r"plugin toy: wants API 0\.9", id="older-major"
        ),
        pytest.param(
            {"kvmarch_unmpa_gfn_range": hook("kvmarch_unmpa_gfn_range", None)},
            "plugin toy: .*unknown hook 'kvmarch_unmpa_gfn_range'",
            id="unknown-hook",
        ),
        pytest.param(
            {
                "kvmarch_tlb_tag": hookimpl(
                    lambda vcpu, vmid: None, specname="kvmarch_tlb_tag"
                )
            },
            "plugin toy: .*kvmarch_tlb_tag.*vmid",
            id="wrong-argument",
        ),
        pytest.param(
            {"kvmarch_arch": None},
            "plugin toy: hook kvmarch_arch is missing",
            id="no-arch",
        ),
        pytest.param(
            {"kvmarch_decode": None},
            "plugin toy: hook kvmarch_decode is missing; tier 1 needs it",
            id="no-decode",
        ),
        pytest.param(
            {"kvmarch_arch": hookimpl(kvmarch_raises, specname="kvmarch_arch")},
            "plugin toy: hook kvmarch_arch raised ValueError: two lines",
            id="raises",
        ),
        pytest.param(
            {"kvmarch_arch": hook("kvmarch_arch", {"name": "toy"})},
            "plugin toy: hook kvmarch_arch returned dict, not ArchInfo",
            id="wrong-type",
        ),
        pytest.param(
            {"kvmarch_arch": hook("kvmarch_arch", info(name="other"))},
            "plugin toy: hook kvmarch_arch says 'other', the entry point 'toy'",
            id="other-name",
        ),
        pytest.param(
            {"kvmarch_arch": hook("kvmarch_arch", info(options={}))},
            "plugin toy: hook kvmarch_arch: option page_size is missing",
            id="no-page-size",
        ),
        pytest.param(
            {"kvmarch_changes": hook("kvmarch_changes", [])},
            "plugin toy: hook kvmarch_changes returned list, not tuple",
            id="no-tuple",
        ),
        pytest.param(
            {"kvmarch_changes": hook("kvmarch_changes", ("gpc",))},
            "plugin toy: hook kvmarch_changes returned a str among its Change rows",
            id="row-type",
        ),
        pytest.param(
            {
                "kvmarch_changes": hook(
                    "kvmarch_changes", (Change("c", "s", (6, 1), arch="other"),)
                )
            },
            "plugin toy: hook kvmarch_changes: change c is of arch 'other'",
            id="change-of-another",
        ),
        pytest.param(
            {
                "kvmarch_changes": hook(
                    "kvmarch_changes", (Change("gpc", "s", (6, 1), arch="toy"),)
                )
            },
            "plugin toy: hook kvmarch_changes: change gpc is one of the core's",
            id="change-of-the-core",
        ),
        pytest.param(
            {"kvmarch_choices": hook("kvmarch_choices", (3,))},
            "plugin toy: hook kvmarch_choices returned a int among its Choice rows",
            id="choice-type",
        ),
        pytest.param(
            {"kvmarch_choices": hook("kvmarch_choices", (needing("no-such"),))},
            "hook kvmarch_choices: choice how needs change no-such, which nobody knows",
            id="choice-need",
        ),
        pytest.param(
            {"kvmarch_choices": hook("kvmarch_choices", (needing("gpc"),) * 2)},
            "hook kvmarch_choices: choice how is there twice",
            id="choice-twice",
        ),
        pytest.param(
            {"kvmarch_page_fault": hook("kvmarch_page_fault", "guest")},
            r"hook kvmarch_page_fault must be a coroutine function \(async def\)",
            id="no-coroutine",
        ),
        pytest.param(
            {"kvmarch_scenarios": hook("kvmarch_scenarios", None)},
            "plugin toy: hook kvmarch_scenarios returned NoneType, not Sequence",
            id="scenarios",
        ),
        pytest.param(
            {"kvmarch_scenarios": hook("kvmarch_scenarios", "/one/folder")},
            "hook kvmarch_scenarios must return a sequence of paths",
            id="one-path",
        ),
        pytest.param(
            {"kvmarch_lab": hook("kvmarch_lab", "qemu")},
            "hook kvmarch_lab returned str, not LabMachine",
            id="lab",
        ),
        pytest.param(
            {"kvmarch_deviations": hook("kvmarch_deviations", ("rule",))},
            "hook kvmarch_deviations returned a str among its Deviation rows",
            id="deviations",
        ),
        pytest.param(
            {"kvmarch_arch": hook("kvmarch_arch", info(first="v5.4"))},
            "hook kvmarch_arch: first is 'v5.4', no release such as",
            id="first",
        ),
        pytest.param(
            {"kvmarch_arch": hook("kvmarch_arch", info(options=3))},
            "hook kvmarch_arch: options is int, not a mapping",
            id="options",
        ),
        pytest.param(
            {"kvmarch_arch": hook("kvmarch_arch", info(options={"page_size": 4096}))},
            "hook kvmarch_arch: option page_size is no Option with a tuple",
            id="option",
        ),
        pytest.param(
            {
                "kvmarch_arch": hook(
                    "kvmarch_arch", info(options={"page_size": Option((), "bytes")})
                )
            },
            "hook kvmarch_arch: option page_size has no values",
            id="no-values",
        ),
    ],
)
def test_a_plugin_is_refused(altered, names, message):
    with pytest.raises(PluginError, match=message) as refused:
        check(altered(**names))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("error", [ValueError("two\nlines"), SystemExit("two\nlines")])
@pytest.mark.parametrize("name", sorted({"arch", *ASKED_ONCE} - {"properties"}))
def test_a_hook_that_raises_when_it_is_asked(altered, name, error):
    def raising():
        raise error

    specname = f"kvmarch_{name}"
    with pytest.raises(PluginError) as refused:
        check(altered(**{specname: hookimpl(raising, specname=specname)}))

    kind = type(error).__name__
    assert str(refused.value) == (
        f"plugin toy: hook {specname} raised {kind}: two lines"
    )


# -- loading -----------------------------------------------------------------------


class Point:
    """An entry point that gives what it is told, or raises it."""

    group, value = plugins.GROUP, "module"

    def __init__(self, name, what, distribution="dist"):
        self.name, self.what = name, what
        self.dist = SimpleNamespace(name=distribution, version="9")

    def load(self):
        if isinstance(self.what, BaseException):
            raise self.what
        return self.what() if self.what is overlapping else self.what


@pytest.fixture
def points(monkeypatch):
    def make(*rows):
        monkeypatch.setattr(
            importlib.metadata, "entry_points", lambda *, group: list(rows)
        )
        return plugins.load()

    return make


@pytest.mark.parametrize(
    ("what", "message"),
    [
        pytest.param(
            ImportError("no module named x"),
            "plugin bad: importing module failed: ImportError: no module named x",
            id="import-error",
        ),
        pytest.param(
            SyntaxError("bad"), "importing module failed: SyntaxError: bad", id="syntax"
        ),
        pytest.param(
            ZeroDivisionError(),
            "plugin bad: importing module failed: ZeroDivisionError",
            id="no-text",
        ),
        pytest.param(
            SystemExit(3), "importing module failed: SystemExit: 3", id="exits"
        ),
        pytest.param(
            overlapping,
            "plugin bad: importing module failed: FormatError: Leaf.one: bits 7:4 "
            "overlap two",
            id="overlapping-fields",
        ),
        pytest.param(
            SimpleNamespace(), "plugin bad: KVMARCH_API must be a pair", id="no-plugin"
        ),
        pytest.param(None, "plugin bad: KVMARCH_API must be a pair", id="nothing"),
    ],
)
def test_a_plugin_that_is_refused_leaves_the_others(points, toy_module, what, message):
    loaded = points(Point("bad", what), Point("toy", toy_module))

    assert list(loaded.loaded) == ["toy"]
    (refused,) = loaded.refused
    assert (refused.name, refused.distribution) == ("bad", "dist")
    assert message in refused.why
    assert "\n" not in refused.why


def test_a_name_is_taken_once(points, toy_module):
    loaded = points(Point("toy", toy_module, "one"), Point("toy", toy_module, "other"))

    assert loaded.loaded["toy"].distribution == "one"
    (refused,) = loaded.refused
    assert refused.why == "plugin toy of other: the name is taken by one"


def test_an_architecture_that_works_is_found_though_its_name_was_wanted_twice(
    points, toy_module
):
    loaded = points(Point("toy", toy_module, "one"), Point("toy", toy_module, "other"))

    assert loaded.get("toy").distribution == "one"


def test_a_plugin_that_is_slow_to_import_works_and_is_named(
    points, toy_module, monkeypatch
):
    seconds = iter((0.0, 7.5))
    monkeypatch.setattr(plugins.time, "perf_counter", lambda: next(seconds))
    loaded = points(Point("toy", toy_module))

    assert list(loaded.loaded) == ["toy"]
    assert loaded.refused == ()
    assert loaded.warnings == ("plugin toy: importing module of dist took 7.5 s",)


def test_loading_may_be_traced(monkeypatch, toy_module, capsys):
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda *, group: [Point("toy", toy_module)]
    )
    plugins.load(trace=True)

    assert capsys.readouterr().err == "plugin toy: module of dist\n"


def test_asking_for_an_architecture(toys):
    assert toys.get("toy").name == "toy"
    with pytest.raises(
        UnknownNameError, match="unknown architecture 'x'; there is toy"
    ):
        toys.get("x")


def test_asking_for_one_that_was_refused(toy):
    refused = plugins.Refused("bad", "dist", "plugin bad: is bad")

    with pytest.raises(PluginError, match="plugin bad: is bad"):
        plugins.Plugins([toy], [refused]).get("bad")


def test_folders_of_scenarios(altered):
    module = altered(kvmarch_scenarios=hook("kvmarch_scenarios", ["/a", "/b"]))

    assert plugins.Plugins([check(module)], []).scenario_folders() == ("/a", "/b")


def test_folders_of_recordings(altered):
    module = altered(kvmarch_recordings=hook("kvmarch_recordings", ["/a"]))

    assert plugins.Plugins([check(module)], []).recording_folders() == ("/a",)
    assert plugins.Plugins([check(altered())], []).recording_folders() == ()
