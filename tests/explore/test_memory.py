"""The bound on memory: one search does not pay for another."""

from kvmarch.explore.search import memory_now, peak_memory


def test_memory_that_was_given_back_does_not_count():
    before = memory_now()
    big = bytearray(b"a" * (64 << 20))
    meanwhile = memory_now()
    del big

    assert meanwhile > before + (48 << 10)
    assert memory_now() < before + (16 << 10)
    assert peak_memory() > before + (48 << 10)
