"""The machines that architectures are booted on."""

__all__ = ["machine_of"]

from kvmarch.arch import LabMachine
from kvmarch.errors import LabError
from kvmarch.plugins import Loaded


def machine_of(arch: Loaded) -> LabMachine:
    """Return how an architecture is booted.

    :raises LabError: its plugin does not say.
    """
    if "lab" not in arch.operations:
        raise LabError(f"the plugin of {arch.name} does not say how the lab boots it")
    machine: LabMachine = arch.operations["lab"]()
    return machine
