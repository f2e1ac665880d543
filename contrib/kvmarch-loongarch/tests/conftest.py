"""Machines of the architecture, made through kvmarch's test kit."""

import pytest
from kvmarch import plugins
from kvmarch.testing.bench import Bench

import kvmarch_loongarch


@pytest.fixture(scope="session")
def arch():
    """The architecture, checked."""
    return plugins.check("loongarch", kvmarch_loongarch, "kvmarch-loongarch", "0")


@pytest.fixture
def link(arch):
    """Assemble a kernel."""

    def make(release=(7, 2), plus=(), minus=()):
        return plugins.link(arch, release, plus, minus)

    return make


@pytest.fixture
def bench(arch, link):
    """Boot a machine."""
    made = []

    def make(release=(7, 2), plus=(), minus=(), pages=16, vcpus=1, **options):
        given = {name: str(value) for name, value in options.items()}
        settled = arch.info.settle(release, given)
        one = Bench(link(release, plus, minus), settled, pages, vcpus=vcpus)
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()
