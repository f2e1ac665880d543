"""Fixtures of the generic kernel's tests."""

from dataclasses import replace

import pytest


@pytest.fixture
def one(bench):
    """A machine with eight pages of memory, and a slot that has them."""
    made = bench(pages=8)
    made.slot()
    return made


@pytest.fixture
def two_spaces(toy):
    """What to replace so that there are two address spaces, as on x86."""
    return {"arch_info": replace(toy.info, address_spaces=2)}
