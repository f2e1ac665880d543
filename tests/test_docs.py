"""What is there is documented, and the core knows no architecture by name."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from kvmarch import hookspecs, toolspecs
from kvmarch.cli import command_line
from kvmarch.kernel.table import CHANGES, CHOICES
from kvmarch.plugins import load
from kvmarch.scenarios.columns import SHOWS
from kvmarch.scenarios.properties import ALWAYS_ON
from kvmarch.scenarios.verbs import VERBS

TOP = Path(__file__).parent.parent
CORE = TOP / "kvmarch"
HOOKS = {
    name: function
    for name, function in (*vars(hookspecs).items(), *vars(toolspecs).items())
    if name.startswith("kvmarch_")
}
ARCHITECTURES = sorted(folder.name for folder in (TOP / "plugins").iterdir())


def is_sentence(text):
    """Return whether a documentation begins with a sentence."""
    first = (text or "").strip().split("\n\n")[0]
    return len(first) > 3 and first[-1] in ".:"


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_every_hook_is_documented(name):
    function = HOOKS[name]
    text = inspect.getdoc(function)

    assert is_sentence(text)
    for argument in inspect.signature(function).parameters:
        everywhere = f"``{argument}``" in hookspecs.__doc__
        assert everywhere or f":param {argument}:" in text or f"``{argument}``" in text


def test_every_hook_is_in_a_tier_or_optional():
    tiers = {f"kvmarch_{name}" for names in hookspecs.TIERS.values() for name in names}

    assert tiers | hookspecs.OPTIONAL == HOOKS.keys()
    assert not tiers & hookspecs.OPTIONAL


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.name)
def test_every_choice_says_what_it_decides(choice):
    assert re.match(r"(what|whether|which|how|who|the|when) ", choice.doc), choice.doc
    assert choice.variants


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_every_change_has_a_subject_and_a_source(change):
    assert len(change.subject) > 10
    assert change.source
    assert re.fullmatch(r"[0-9a-f]{12}|", change.commit)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", change.name)


@pytest.mark.parametrize("name", sorted(VERBS))
def test_every_verb_is_documented(name):
    assert is_sentence(VERBS[name].doc)
    for kind in VERBS[name].params.values():
        assert re.fullmatch(r"\??(int|name|flags|word:\w+(\|\w+)*)", kind)


@pytest.mark.parametrize(
    "verb",
    [verb for arch in load().loaded.values() for verb in arch.verbs],
    ids=lambda verb: verb.name,
)
def test_every_verb_of_an_architecture_is_documented(verb):
    assert is_sentence(verb.doc)


@pytest.mark.parametrize("name", sorted(SHOWS))
def test_every_kind_of_column_is_documented(name):
    assert is_sentence(inspect.getdoc(SHOWS[name][0]))


@pytest.mark.parametrize("row", ALWAYS_ON, ids=lambda row: row.id)
def test_every_property_is_documented(row):
    assert row.sentence
    assert row.source


@pytest.mark.parametrize("name", command_line().list_commands(None))
def test_every_command_is_documented(name):
    command = command_line().get_command(None, name)

    assert is_sentence(command.help)
    for parameter in command.params:
        if parameter.param_type_name == "option" and not parameter.hidden:
            assert parameter.help, f"{name} {parameter.opts[0]}"


@pytest.mark.parametrize(
    "path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE))
)
def test_the_core_knows_no_architecture_by_name(path):
    quoted = re.compile("|".join(rf"['\"]{name}['\"]" for name in ARCHITECTURES))

    assert quoted.findall(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE))
)
def test_a_module_begins_with_a_sentence_and_its_public_names_exist(path):
    tree = ast.parse(path.read_text("utf-8"))
    made = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    } | {
        name.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for name in ast.walk(node)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    }
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    public = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and getattr(node.targets[0], "id", "") == "__all__"
    ]

    assert is_sentence(ast.get_docstring(tree))
    for names in public:
        assert set(names) <= made | imported, set(names) - made - imported
