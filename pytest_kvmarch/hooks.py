"""What a conftest.py may tell the pytest plugin of kvmarch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmarch.plugins import Loaded


def pytest_kvmarch_architectures() -> Sequence[Loaded]:
    """Return architectures that are not installed, to be tested beside the others."""
    raise NotImplementedError
