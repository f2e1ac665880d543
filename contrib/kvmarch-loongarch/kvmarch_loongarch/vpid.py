"""vpids: numbers of guests in the TLB, which are renamed instead of flushed.

Models arch/loongarch/kvm/main.c and tlb.c, v6.8 on (fact sheet loongarch, 2). Each CPU
has one counter: its low bits tag TLB entries (GTLBC.TGID), the bits above say how often
they wrapped. Who holds a number of an older version takes a new one before it enters;
what is cached under the old number stays until the wrap, unreachable.
"""

__all__ = [
    "CHOICES",
    "FIRST_VERSION",
    "FLUSH_GPA",
    "check_vpid",
    "forget_gpa",
    "handle_request",
    "vcpu_load",
]

from typing import TYPE_CHECKING

from kvmarch import Choice, Vcpu

if TYPE_CHECKING:
    from kvmarch_loongarch.state import LoongarchVcpu

# Simplified: eight bits, as in the CPUs that are there; hardware says how many it has.
VPID_MASK = (1 << 8) - 1
FIRST_VERSION = VPID_MASK + 1
"""What a CPU's counter holds before the first number is taken. 0 is the host's."""

FLUSH_GPA = "tlb_flush_gpa"
"""KVM_REQ_TLB_FLUSH_GPA, which a vCPU only makes of itself."""


def check_vpid(vcpu: Vcpu) -> bool:
    """Take a new number if the one at hand is of another version; return if so.

    :Kernel: kvm_check_vpid(), kvm_update_vpid(); interrupts are off.
    """
    arch: LoongarchVcpu = vcpu.arch
    if not (arch.vpid ^ arch.cache) & ~VPID_MASK:
        return False
    number = arch.cache + 1
    if not number & VPID_MASK:
        # A wrap: everything of every guest goes, and 0 is not given out.
        vcpu.tlb.drop_all()
        number += 1
    arch.vpid = arch.cache = number
    arch.gid = number & VPID_MASK
    return True


def forget_gpa(vcpu: Vcpu, gfn: int) -> None:
    """Forget the pair of pages around a gfn, on this CPU.

    :Kernel: kvm_flush_tlb_gpa(): the address is rounded down to two pages.
    """
    even = gfn & ~1
    vcpu.tlb.drop(vcpu.arch.gid, even, even + 2)


def vcpu_load(vcpu: Vcpu) -> None:
    """Make sure of the vpid, and then do the flush that waits for it.

    :Kernel: kvm_check_vpid(), kvm_late_check_requests(); interrupts are off. Until
        v6.10 nothing ever waits.
    """
    check_vpid(vcpu)
    arch: LoongarchVcpu = vcpu.arch
    if arch.flush_gpa >= 0:
        forget_gpa(vcpu, arch.flush_gpa)
        arch.flush_gpa = -1


def handle_request(vcpu: Vcpu, request: str) -> None:
    """Give the number up, if the whole TLB is meant; one address waits for the entry.

    :Kernel: kvm_check_requests(): vcpu->arch.vpid = 0.
    """
    if request == "tlb_flush":
        vcpu.arch.vpid = 0


loongarch_forget_fault = Choice(
    "loongarch_forget_fault", "how a fault makes its CPU forget the address"
)


@loongarch_forget_fault.when()
def _at_once(vcpu: Vcpu, gfn: int, why: str) -> None:
    """Forget it at once, under the number that the CPU has (to v6.10)."""
    forget_gpa(vcpu, gfn)


@loongarch_forget_fault.when("loongarch-flush-gpa-late")
def _at_entry(vcpu: Vcpu, gfn: int, why: str) -> None:
    """Ask oneself to forget it on the way into the guest (v6.11 on)."""
    vcpu.arch.flush_gpa = gfn
    vcpu.requests.add(FLUSH_GPA)


@loongarch_forget_fault.when("loongarch-flush-gpa-late", "loongarch-ptw-keeps-tlb")
def _if_cached(vcpu: Vcpu, gfn: int, why: str) -> None:
    """Ask only if something is cached (v6.16 on).

    A hardware walker does not cache what is not valid, so that only an entry that may
    not be written is in the way.
    """
    if why == "modified" or not vcpu.vm.arch.ptw:
        _at_entry(vcpu, gfn, why)


CHOICES = (loongarch_forget_fault,)
