"""What a plugin imports of kvmarch beside its public names."""

__all__ = ["not_public", "sources_of"]

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

from kvmarch.plugins import Loaded

PUBLIC: frozenset[str] = frozenset(sys.modules["kvmarch"].__all__)
"""The public names. No part of kvmarch imports the package, which gathers them all."""


def sources_of(arch: Loaded) -> list[Path]:
    """Return the files of a plugin's package; its one file, if it is a module.

    Tests are no part of it: they may import what they like.
    """
    asked = inspect.unwrap(arch.operations["arch"])
    file = Path(asked.__code__.co_filename)
    dots: int = asked.__module__.count(".")
    if file.name != "__init__.py" and not dots:
        return [file]
    # The folder of a package's module, and up to the package that is imported first.
    up = dots if file.name == "__init__.py" else dots - 1
    return sorted(file.parents[up].rglob("*.py"))


def not_public(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and name of what a file takes that is not among the public names.

    ``from kvmarch import …`` is looked at, ``import kvmarch.…``, and attributes of the
    module if it is imported whole.
    """
    tree = ast.parse(path.read_bytes(), str(path))
    called = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith("kvmarch."):
                    yield node.lineno, name.name
                elif name.name == "kvmarch":
                    called.add(name.asname or name.name)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = node.module or ""
            if module.startswith("kvmarch."):
                yield node.lineno, module
            elif module == "kvmarch":
                for name in node.names:
                    if name.name not in PUBLIC:
                        yield node.lineno, f"kvmarch.{name.name}"
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in called
            and node.attr not in PUBLIC
            and not node.attr.startswith("__")
        ):
            yield node.lineno, f"kvmarch.{node.attr}"
