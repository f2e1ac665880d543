"""The contract as tests: what every architecture must keep, tier by tier.

``kvmarch check-plugin NAME`` runs them. An author's own tests run them too::

    from kvmarch.testing.contract import *

    pytestmark = pytest.mark.kvmarch(arch="demo")

The rules from which an architecture may deviate (:class:`~kvmarch.Deviation`) are in
:data:`RULES`.
"""

from kvmarch.testing.contract.rules import RULES as RULES
from kvmarch.testing.contract.test_1_formats import *  # noqa: F403
from kvmarch.testing.contract.test_1_imports import *  # noqa: F403
from kvmarch.testing.contract.test_2_faults import *  # noqa: F403
from kvmarch.testing.contract.test_2_walk import *  # noqa: F403
from kvmarch.testing.contract.test_3_notifiers import *  # noqa: F403
from kvmarch.testing.contract.test_4_memslots import *  # noqa: F403
from kvmarch.testing.contract.test_5_teardown import *  # noqa: F403
