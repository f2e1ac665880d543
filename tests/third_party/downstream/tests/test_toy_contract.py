"""The plugin of the same author keeps the contract."""

import pytest

from kvmarch.testing.contract import *  # noqa: F403

pytestmark = pytest.mark.kvmarch(arch="toy", kernel="v6.9")
