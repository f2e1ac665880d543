"""Stage-2 entries as the architecture decodes them, and how tables hang together."""

__all__ = ["Entries"]

from typing import TYPE_CHECKING, NamedTuple

from kvmarch.kernel.vm import Vm
from kvmarch.scenarios.states import decoded

if TYPE_CHECKING:
    from kvmarch.format.walk import WalkLayout


class _Pattern(NamedTuple):
    """What entries have in common that map neighbouring pages in the same way.

    :param entry: the entry without its page; or all of it, if it has none.
    :param offset: pfn minus the number of the entry in units of its pages.
    """

    level: int
    entry: int
    offset: int


class Entries:
    """The entries of one VM, told in words; each is decoded once."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        layout = vm.k.walk.fn(vm.k, vm.options)
        self.layout: WalkLayout | None = layout
        self._texts: dict[tuple[int, int], tuple[str, str, str]] = {}
        self._pages: dict[tuple[int, int], tuple[int | None, int]] = {}

    def tell(self, entry: int, level: int) -> tuple[str, str, str]:
        """Return number, kind and fields of an entry."""
        known = self._texts.get((entry, level))
        if known is None:
            number, _, rest = decoded(
                self.vm.k, self.vm.options, entry, level
            ).partition(" ")
            kind, _, fields = rest.partition(" (")
            known = self._texts[entry, level] = number, kind, fields.removesuffix(")")
        return known

    def pattern(self, number: int, pages: int, entry: int, level: int) -> _Pattern:
        """Return what an entry shares with neighbours that map on where it ends.

        :param number: of the gfn, or of the entry in its table.
        :param pages: that one number stands for.
        """
        pfn, bare = self._page(entry, level)
        if pfn is None:
            return _Pattern(level, entry, 0)
        return _Pattern(level, bare, pfn - number * pages)

    def _page(self, entry: int, level: int) -> tuple[int | None, int]:
        known = self._pages.get((entry, level))
        if known is None:
            k, options = self.vm.k, self.vm.options
            pfn = k.entry_pfn.fn(k, options, entry, level)
            bare = entry
            if pfn is not None:
                bare = k.entry_repoint.fn(k, options, entry, level, 0)
            known = self._pages[entry, level] = pfn, bare
        return known

    def pages_at(self, level: int) -> int:
        """Return how many pages an entry of a level covers; 1 if nothing says so."""
        if self.layout is None or level not in self.layout.by_level:
            return 1
        return 1 << self.layout.by_level[level].shift - self.layout.page_shift

    def child(self, entry: int, level: int) -> int | None:
        """Return the physical address of the table that an entry leads to, if any."""
        if self.layout is None or level not in self.layout.by_level:
            return None
        for rule in self.layout.by_level[level].rules:
            if entry & rule.mask == rule.value:
                return rule.address_of(entry) if rule.role == "table" else None
        return None
