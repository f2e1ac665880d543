"""What every architecture must keep, on several releases and kinds of tables."""

from kvmarch.testing.contract import *  # noqa: F403
