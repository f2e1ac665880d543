"""What a plugin takes of kvmarch that is not public is found, and where."""

from types import SimpleNamespace

import pytest

from kvmarch.plugins import load
from kvmarch.testing.imports import not_public, sources_of


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("from kvmarch import Part, op", [], id="public"),
        pytest.param("from kvmarch import World", [(1, "kvmarch.World")], id="name"),
        pytest.param(
            "from kvmarch.machine.world import World",
            [(1, "kvmarch.machine.world")],
            id="from-module",
        ),
        pytest.param("import kvmarch.kernel", [(1, "kvmarch.kernel")], id="module"),
        pytest.param(
            "import kvmarch\nkvmarch.Part\nkvmarch.kernel\nkvmarch.__version__",
            [(3, "kvmarch.kernel")],
            id="attribute",
        ),
        pytest.param(
            "import kvmarch as k\nif 1:\n    k.kernel.vm",
            [(3, "kvmarch.kernel")],
            id="another-name",
        ),
        pytest.param(
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
            "    from kvmarch.machine.world import World",
            [(3, "kvmarch.machine.world")],
            id="for-types",
        ),
        pytest.param("from kvmarch_demo.formats import Page", [], id="its-own"),
        pytest.param("from . import formats\nfrom .kvmarch import x", [], id="beside"),
        pytest.param("import numpy\nimport os.path", [], id="others"),
    ],
)
def test_what_is_not_public(tmp_path, text, found):
    path = tmp_path / "module.py"
    path.write_text(text, "utf-8")

    assert list(not_public(path)) == found


def test_the_files_of_a_package():
    names = {path.name for path in sources_of(load().get("mips"))}

    assert {"__init__.py", "fault.py"} <= names


def plugin(module, file):
    """Return a plugin whose hook is said to be in a module of a file."""
    code = compile("def kvmarch_arch(): pass", str(file), "exec")
    space = {"__name__": module}
    exec(code, space)  # noqa: S102 - the two lines above
    return SimpleNamespace(operations={"arch": space["kvmarch_arch"]})


@pytest.mark.parametrize(
    ("module", "file", "found"),
    [
        ("one", "one.py", {"one.py"}),
        ("pack", "pack/__init__.py", {"pack/__init__.py", "pack/sub/deep.py"}),
        ("pack.sub.deep", "pack/sub/deep.py", {"pack/__init__.py", "pack/sub/deep.py"}),
    ],
)
def test_from_a_module_to_its_package(tmp_path, module, file, found):
    for name in ("one.py", "two.py", "pack/__init__.py", "pack/sub/deep.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", "utf-8")

    sources = sources_of(plugin(module, tmp_path / file))
    assert {str(path.relative_to(tmp_path)) for path in sources} == found
