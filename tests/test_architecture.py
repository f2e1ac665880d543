"""Imports go one way, and each outside package has one door."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kvmarch
from kvmarch import hookspecs

TOP = Path(__file__).parent.parent
CORE = TOP / "kvmarch"
PLUGINS = sorted((TOP / "plugins").iterdir())

LAYERS = {
    "errors": set(),
    "format": {"errors"},
    "machine": {"errors", "format"},
    "changes": {"errors", "machine"},
    "arch": {"changes", "errors", "format"},
    "tiers": set(),
    "hookspecs": {"tiers"},
    "toolspecs": {"hookspecs"},
    "kernel": {"changes", "errors", "format", "machine"},
    "plugins": {"arch", "changes", "errors", "hookspecs", "kernel", "toolspecs"},
    "blame": {"arch", "changes", "errors", "format", "machine", "plugins"},
    "report": {"errors"},
    "explore": {"errors", "machine"},
    "scenarios": {
        "arch",
        "blame",
        "changes",
        "errors",
        "explore",
        "format",
        "kernel",
        "machine",
        "plugins",
        "report",
    },
    "page": {
        "arch",
        "blame",
        "changes",
        "errors",
        "explore",
        "format",
        "kernel",
        "machine",
        "plugins",
        "report",
        "scenarios",
    },
    "recordings": {
        "blame",
        "changes",
        "errors",
        "machine",
        "plugins",
        "report",
        "scenarios",
    },
    "sweep": {"changes", "errors", "plugins", "report", "scenarios"},
    "lab": {
        "arch",
        "changes",
        "errors",
        "format",
        "machine",
        "plugins",
        "recordings",
        "report",
        "scenarios",
        "walk",
    },
    "walk": {"changes", "errors", "format", "plugins", "report", "scenarios"},
    "kit": {"errors", "hookspecs"},
    "testing": {
        "arch",
        "blame",
        "changes",
        "errors",
        "format",
        "hookspecs",
        "kernel",
        "machine",
        "plugins",
        "recordings",
        "report",
        "scenarios",
    },
    "cli": {
        "blame",
        "changes",
        "errors",
        "explore",
        "kit",
        "lab",
        "page",
        "plugins",
        "recordings",
        "report",
        "scenarios",
        "sweep",
        "testing",
        "walk",
    },
    "__main__": {"cli"},
}
"""What each part of kvmarch may import, besides itself. The package itself gathers
the public names, so it is no part."""

DOORS = {
    "click": {"cli"},
    "distributed": {"sweep"},
    "numpy": {"lab", "walk"},
    "pluggy": {"plugins", "hookspecs"},
    "pytest": {"testing"},
    "tabulate": {"report"},
}
"""Which part of kvmarch may import which package from outside."""


def modules(folder):
    return sorted(path for path in folder.rglob("*.py"))


def imports(path):
    """Yield what a file imports when it runs, and where."""

    def walk(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                for other in child.orelse:
                    yield from walk(other)
                continue
            if isinstance(child, ast.Import):
                for name in child.names:
                    yield name.name, child.lineno
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, f"{path}:{child.lineno}: import is relative"
                for name in child.names:
                    yield f"{child.module}.{name.name}", child.lineno
            yield from walk(child)

    yield from walk(ast.parse(path.read_text("utf-8")))


def part(path):
    """Return the part of kvmarch that a file belongs to."""
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def parts_of(name):
    """Return the parts that an imported name may mean, from kvmarch."""
    words = name.split(".")
    return set(words[1:2]) & (LAYERS.keys() | {"__init__"})


@pytest.mark.parametrize(
    "path", modules(CORE), ids=lambda path: str(path.relative_to(CORE))
)
def test_imports_of_the_core_go_one_way(path):
    here = part(path)
    outside = set(sys.stdlib_module_names) | {"kvmarch"}

    for name, line in imports(path):
        root = name.split(".")[0]
        place = f"{path.relative_to(TOP)}:{line}"
        if root == "kvmarch" and here != "__init__":
            there = parts_of(name)
            assert there, f"{place}: {name} is of no part"
            assert there <= LAYERS[here] | {here}, f"{place}: {here} imports {name}"
        elif root not in outside:
            assert here in DOORS.get(root, ()), f"{place}: {here} imports {root}"


def test_the_layers_have_no_circle():
    done = set()
    while done != LAYERS.keys():
        ready = {name for name, below in LAYERS.items() if below <= done} - done
        assert ready, LAYERS.keys() - done
        done |= ready


def test_every_part_is_in_the_layers():
    assert {part(path) for path in modules(CORE)} == LAYERS.keys() | {"__init__"}


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_a_plugin_imports_the_public_names_and_itself(folder):
    public = CORE / "__init__.py"
    names = next(
        ast.literal_eval(node.value)
        for node in ast.parse(public.read_text("utf-8")).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )

    for path in modules(folder):
        for name, line in imports(path):
            root, _, rest = name.partition(".")
            place = f"{path.relative_to(TOP)}:{line}"
            if root == "kvmarch":
                assert rest in names, f"{place}: {name} is not public"
            else:
                own = f"kvmarch_{folder.name}"
                assert root == own or root in sys.stdlib_module_names, (
                    f"{place}: {name}"
                )


def test_the_third_partys_plugin_imports_the_public_names_only():
    for path in modules(TOP / "tests" / "third_party" / "kvmarch_toy"):
        roots = {name.split(".")[0] for name, _ in imports(path)}
        submodules = [name for name, _ in imports(path) if name.count(".") > 1]

        assert roots <= {"kvmarch", *sys.stdlib_module_names}
        assert submodules == []


def test_the_command_line_starts_without_other_packages():
    script = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "from kvmarch.cli import command_line; command_line()\n"
        "print(*sorted({n.split('.')[0] for n in set(sys.modules) - before}))\n"
        "print(*sorted(n for n in sys.modules if n.startswith('kvmarch.')))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    roots, own = (line.split() for line in run.stdout.splitlines())
    assert set(roots) - set(sys.stdlib_module_names) == {"kvmarch", "click"}
    parts = {name.split(".")[1] for name in own}
    assert not parts & {"plugins", "scenarios", "recordings", "report"}


def test_the_contract_is_there_when_a_plugin_asks():
    assert kvmarch.API_VERSION == hookspecs.API_VERSION
    assert kvmarch.hookimpl is hookspecs.hookimpl
    with pytest.raises(AttributeError, match="'kvmarch' has no attribute 'hookspce'"):
        _ = kvmarch.hookspce


def test_every_public_name_is_there():
    for name in kvmarch.__all__:
        assert getattr(kvmarch, name) is not None
