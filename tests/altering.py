"""The toy with something exchanged: plugins to be checked, right and wrong."""

from types import SimpleNamespace

from kvmarch import ArchInfo, Option, hookimpl, plugins

ASKED_ONCE = {"deviations", "lab", "properties", "recordings", "scenarios", "verbs"}
"""Hooks that are no operations of a kernel."""


def alter(module, names):
    """Return a module with names exchanged; None takes one out."""
    kept = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("__") and name not in names
    }
    chosen = {name: value for name, value in names.items() if value is not None}
    return SimpleNamespace(__name__="altered", **kept, **chosen)


def check(module, name="toy"):
    return plugins.check(name, module, "kvmarch-toy", "1.0")


def info(**fields):
    options = {"page_size": Option((4096,), "bytes of a page")}
    return ArchInfo(
        **{
            "name": "toy",
            "title": "Toy",
            "first": (3, 16),
            "options": options,
            **fields,
        }
    )


def hook(name, value):
    """Return a hook of this name that returns a value."""

    def function():
        return value

    function.__name__ = name
    return hookimpl(function)
