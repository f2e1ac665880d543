"""The contract that every architecture keeps."""

import pytest
from kvmarch.testing.contract import *  # noqa: F403

pytestmark = pytest.mark.kvmarch(arch="loongarch")
