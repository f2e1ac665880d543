"""MIPS: KVM with VZ (GuestID or root ASID) and, up to v5.12, trap and emulate."""
