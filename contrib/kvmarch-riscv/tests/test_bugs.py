"""The sheet's bugs: searched for again, and compared with what is recorded."""

import pytest
from kvmarch.testing.catalogue import *  # noqa: F403 - its tests are this file's

pytestmark = pytest.mark.kvmarch(arch="riscv")
