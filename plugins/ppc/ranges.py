"""Which part of a notifier's gfn range is really treated.

:Kernel: kvm_unmap_gfn_range_hv(), kvm_age_gfn_hv(), arch/powerpc/kvm, v5.13 on; fact
    sheet ppc, P1 and P2. Before v5.13 a walk by hva called the handlers page by page.
"""

__all__ = ["CHOICES"]

from kvmarch import Choice

unmapped = Choice("ppc_unmapped_range", "the gfns that unmapping a range reaches")
aged = Choice("ppc_aged_range", "the gfns that ageing a range reaches")


@unmapped.when()
@unmapped.when("gfn-notifiers", "ppc-gfn-range-loop", "ppc-gfn-range-variable")
def _whole(mmu: str, start: int, end: int) -> tuple[int, int]:
    """Treat every gfn."""
    return start, end


@unmapped.when("gfn-notifiers")
def _first(mmu: str, start: int, end: int) -> tuple[int, int]:
    """Treat the first gfn only (P1)."""
    return start, start + 1


@unmapped.when("gfn-notifiers", "ppc-gfn-range-loop")
def _first_of_hash(mmu: str, start: int, end: int) -> tuple[int, int]:
    """Loop, but treat the first gfn each time if the guest is a hash guest (P2)."""
    return start, start + 1 if mmu == "hash" else end


@aged.when()
@aged.when("gfn-notifiers", "ppc-gfn-range-loop")
def _age_whole(start: int, end: int) -> tuple[int, int]:
    """Age every gfn."""
    return start, end


@aged.when("gfn-notifiers")
def _age_first(start: int, end: int) -> tuple[int, int]:
    """Age the first gfn only (P1)."""
    return start, start + 1


CHOICES = (unmapped, aged)
