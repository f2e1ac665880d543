"""The host's own page tables, where x86 has them otherwise than all others."""

__all__ = ["CHOICES"]

from kvmarch import Choice

reclaims_tables = Choice(
    "reclaims_tables", "whether MADV_DONTNEED frees tables that it leaves empty"
)
reclaims_tables.add(True, "x86-pt-reclaim")
reclaims_tables.add(True, "x86-pt-reclaim", "pt-reclaim")

CHOICES = (reclaims_tables,)
