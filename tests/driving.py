"""A booted machine that a test drives: the part that is alike on all architectures."""

from kvmarch.kernel.boot import boot
from kvmarch.kernel.memory_region import Region, set_memory_region
from kvmarch.kernel.mmap import populate
from kvmarch.kernel.vcpu import guest_access
from kvmarch.machine.host import PFN_SHIFT, WRITE, Vma
from kvmarch.machine.run import Task, _advance
from kvmarch.testing.bench import HVA, Driver


class Driven(Driver):
    """A booted machine whose process has some memory, written already.

    :param vma: of the memory's mapping, beside its addresses.
    """

    def __init__(self, k, options, pages, *, vma=None, **boot_options):
        self.k = k
        self.machine = boot(k, options, **boot_options)
        super().__init__(self.machine.world)
        self.vm = self.machine.vm
        self.options = self.vm.options
        self.mm, self.host = self.machine.mm, self.machine.host
        self.vcpu = self.vm.vcpus[0]
        self.page_size = options["page_size"]
        self.pages = pages
        mapping = Vma(HVA, self.hva(pages), mergeable=True, **vma or {})
        self.mm.add_vma(mapping)
        populate(self.mm, mapping.start, mapping.end, huge=mapping.huge)

    # -- tasks that a test moves by hand ------------------------------------------

    def task(self, name, path):
        return Task(name, lambda: path)

    def reaches(self, task, until):
        """Move a task until the step of a name comes next; False if it does not."""
        _advance(self.world, task, 0)
        while not task.done and task.pending.op.name != until:
            if not _advance(self.world, task, 1):
                return False
        return not task.done

    def advance(self, task, until):
        """Move a task until the step of a name comes next."""
        assert self.reaches(task, until), f"{task} never comes to {until!r}"

    def step(self, task, count=1):
        """Move a task by some steps; return how many it took."""
        _advance(self.world, task, 0)
        return _advance(self.world, task, count)

    def finish(self, task):
        """Move a task to its end and return its result."""
        _advance(self.world, task, 0)
        while not task.done:
            assert _advance(self.world, task, 1), f"{task} waits at {task.pending}"
        return task.result

    # -- the VM -------------------------------------------------------------------

    def hva(self, page):
        return HVA + page * self.page_size

    def vpn(self, page):
        return HVA // self.page_size + page

    def region(self, slot=0, flags=0, gfn=0, pages=None, page=0):
        """Return the path of a memslot change; a deletion for no pages."""
        size, count = self.page_size, self.pages if pages is None else pages
        region = Region(slot, flags, gfn * size, count * size, self.hva(page))
        return set_memory_region(self.vm, region)

    def slot(self, slot=0, **what):
        """Change a memslot; return it."""
        assert self.do(self.region(slot, **what)) == 0
        return self.vm.memslots[0].by_id(slot)

    def guest(self, gfn, how="read", vcpu=0):
        """Return the path of one guest access."""
        return guest_access(self.vm.vcpus[vcpu], gfn, how)

    def access(self, gfn, how="read", vcpu=0):
        """Let a guest make one access, and stay in the guest."""
        return self.do(self.guest(gfn, how, vcpu), f"vcpu{vcpu}")

    def protect(self, *pages):
        """Let the host map pages read-only from now on, without telling KVM."""
        for page in pages:
            self.mm.ptes[self.vpn(page)] &= ~WRITE

    # -- looks --------------------------------------------------------------------

    def entry(self, gfn):
        """Return the lowest entry of a gfn."""
        return self.k.entry.fn(self.vm, gfn)[0]

    def level(self, gfn):
        return self.k.entry.fn(self.vm, gfn)[1]

    def decoded(self, gfn):
        """Return what kind of entry a gfn has, and its fields."""
        return self.k.decode.fn(self.k, self.options, *self.k.entry.fn(self.vm, gfn))

    def kind(self, gfn):
        return self.decoded(gfn)[0]

    def mapped(self, *gfns):
        """Return those of some gfns, or of all pages, that have a leaf."""
        return [
            gfn
            for gfn in gfns or range(self.pages)
            if self.k.entry_pfn.fn(self.k, self.options, *self.k.entry.fn(self.vm, gfn))
            is not None
        ]

    def pfn(self, page):
        """Return the pfn that the host maps at a page."""
        return self.mm.pte(self.vpn(page)) >> PFN_SHIFT
