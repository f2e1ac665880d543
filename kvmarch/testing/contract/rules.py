"""The rules from which an architecture may say that it deviates."""

__all__ = ["RULES"]

RULES = {
    "zaps-deleted-slots": "a deleted memslot leaves no entry",
    "flushes-only-what-goes": "an invalidation of what is not mapped flushes nothing",
    "logs-writes": "KVM_GET_DIRTY_LOG works",
    "logs-only-writes": "a page that is only read is not in the dirty log for ever",
    "maps-nothing-before-end": "nothing is mapped in a range that is being invalidated",
    "frees-tables": "a VM that is destroyed leaves no table",
    "hears-of-the-host": "KVM registers an MMU notifier",
    "emulates-mmio": "an access to what is no memory is emulated",
    "forgets-mmio": "what was MMIO is seen as memory once a memslot is there",
}
"""What each rule says, by name."""
