import base64
import hashlib
import html
import json
import re
from importlib import resources

import pytest

from kvmarch.page.html import SCRIPTS, STYLES, as_json, page

ASSETS = resources.files("kvmarch.page") / "assets"


@pytest.fixture
def text(gather, compared):
    return page(gather(compared).data, "a <b> & c")


def inside(text, opening, closing):
    return text.partition(opening)[2].partition(closing)[0]


def test_no_text_can_end_the_element_of_the_data():
    data = {"</script><!--": "<script>&\u2028\u2029'\"\\"}

    written = as_json(data)

    assert not set(written) & set("<>&\u2028\u2029")
    assert json.loads(written) == data


def test_the_page_carries_the_data(text, gather, compared):
    carried = inside(text, '<script type="application/json" id="data">', "</script>")

    assert "a </script> scenario" not in text
    assert json.loads(carried) == json.loads(json.dumps(gather(compared).data))


def test_the_title_is_text(text):
    assert "<title>a &lt;b&gt; &amp; c</title>" in text


@pytest.mark.parametrize(
    ("kind", "opening", "closing"),
    [("script-src", "<script>", "</script>"), ("style-src", "<style>", "</style>")],
)
def test_the_policy_allows_what_is_there_and_nothing_else(text, kind, opening, closing):
    policy = html.unescape(re.search(r'Policy" content="([^"]*)"', text)[1])
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    digest = hashlib.sha256(inside(text, opening, closing).encode()).digest()

    assert rules["default-src"] == "'none'"
    assert rules[kind] == f"'sha256-{base64.b64encode(digest).decode()}'"


def test_the_page_names_no_address(text):
    script = inside(text, "<script>", "</script>")
    style = inside(text, "<style>", "</style>")

    assert not re.search(
        r"https?:|//[a-z]|@import|url\(|fetch\(|innerHTML", script + style
    )
    assert re.findall(r'(?:src|href)="([^"#][^"]*)"', text) == ["data:,"]


def test_every_asset_is_in_the_page():
    names = {path.name for path in ASSETS.iterdir()}

    assert names == {*SCRIPTS, *STYLES, "page.html"}


IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([^"]*)";\n', re.MULTILINE)
DEFINED = re.compile(r"^(export )?(?:const|let|var|class|function) (\w+)", re.MULTILINE)


def test_modules_import_what_those_before_them_export():
    exported = {}
    for name in SCRIPTS:
        module = (ASSETS / name).read_text("utf-8")
        for names, source in IMPORT.findall(module):
            wanted = {word.strip() for word in names.split(",")} - {""}
            assert wanted <= exported[source], f"{name} from {source}"
        assert len(IMPORT.findall(module)) == module.count("import ")
        exported[name] = {word for export, word in DEFINED.findall(module) if export}


def test_modules_become_one_script_without_names_that_clash(text):
    script = inside(text, "<script>", "</script>")
    names = [name for _export, name in DEFINED.findall(script)]

    assert script.startswith('\n"use strict";\n')
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)
    assert len(names) > 90
    assert sorted(set(names)) == sorted(names)


def test_the_page_says_what_made_it_and_when(gather, compared):
    data = gather(compared).data
    written = page(data, "it", command="kvmarch report 'a<b'", day="2026-11-21")

    [made] = re.findall(r'<p class="made">(.*)</p>', written)
    assert made == (
        f"Made with kvmarch {data['version']}"
        ' on <time datetime="2026-11-21">2026-11-21</time>'
        " by <code>kvmarch report &#x27;a&lt;b&#x27;</code>."
    )


def test_the_same_data_make_the_same_page(text, gather, compared):
    assert page(gather(compared).data, "a <b> & c") == text
