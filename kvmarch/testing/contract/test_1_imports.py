"""Tier 1: what a plugin takes of kvmarch is public."""

__all__ = ["test_only_public_names_are_imported"]

import pytest

from kvmarch.plugins import Loaded
from kvmarch.testing.imports import not_public, sources_of

TIER = pytest.mark.kvmarch(tier=1)


@TIER
def test_only_public_names_are_imported(kvmarch_plugin: Loaded) -> None:
    sources = sources_of(kvmarch_plugin)

    assert sources
    for path in sources:
        for line, name in not_public(path):
            place = f"{path.parent.name}/{path.name}:{line}"
            raise AssertionError(f"{place}: {name} is no public name of kvmarch")
