"""Kernels that are put together of the core and a plugin."""

import pytest
from altering import ASKED_ONCE, check, hook, info

from kvmarch import Change, Choice, hookspecs, plugins
from kvmarch.errors import KernelError


def test_a_kernel_has_every_operation(link):
    k = link((6, 1))

    for name in (n for names in hookspecs.TIERS.values() for n in names):
        assert k.has(name), name
    for name in hookspecs.OPTIONAL - {"kvmarch_changes", "kvmarch_choices"}:
        bare = name.removeprefix("kvmarch_")
        assert k.has(bare) or bare in ASKED_ONCE, name


def test_what_is_left_out_has_a_default(link):
    k = link((6, 1))

    assert k.mmu_lock_kind == "spinlock"
    assert k.generic_dirty_log is True
    assert k.vcpu_create.fn(None) is None


def test_a_release_before_the_architecture(altered):
    loaded = check(altered(kvmarch_arch=hook("kvmarch_arch", info(first=(5, 0)))))

    with pytest.raises(KernelError, match=r"toy: modelled from v5\.0 on, not v4\.4"):
        plugins.link(loaded, (4, 4))


def test_an_architectures_choice_stands_for_the_cores(altered):
    choice = Choice("flush_if_young", "whether to flush")
    choice.add(False)
    loaded = check(altered(kvmarch_choices=hook("kvmarch_choices", (choice,))))

    assert plugins.link(loaded, (6, 1)).flush_if_young is False


def test_an_architectures_variant_adds_to_the_cores(altered):
    change = Change("toy-elides", "elide the flush", (6, 2), arch="toy")
    choice = Choice("flush_if_young", "whether to flush")
    choice.add(False, "toy-elides")
    loaded = check(
        altered(
            kvmarch_choices=hook("kvmarch_choices", (choice,)),
            kvmarch_changes=hook("kvmarch_changes", (change,)),
        )
    )

    flushes = [plugins.link(loaded, r).flush_if_young for r in ((6, 1), (6, 2))]
    assert flushes == [True, False]
    assert change in plugins.all_changes(plugins.Plugins([loaded], []))


def test_only_what_is_asked_for_is_loaded():
    loaded = plugins.load(only=("arm64",))

    assert list(loaded.loaded) == ["arm64"]


def test_all_is_loaded_to_say_what_there_is():
    loaded = plugins.load(only=("arm64", "vax"))

    assert {"arm64", "x86"} <= set(loaded.loaded)
