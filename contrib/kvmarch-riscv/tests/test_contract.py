"""The contract that every architecture keeps."""

import pytest
from kvmarch.testing.contract import *  # noqa: F403 - its tests are this file's

pytestmark = pytest.mark.kvmarch(arch="riscv")
