"""Trace events in the recordings' form."""

from kvmarch.lab.events import Event, read_event

HVAS = {0: (0x7F0000015000, 0x7F0000025000), 1: (0x7F0040025000, 0x7F0040035000)}


def test_an_event_is_taken_apart():
    line = (
        "           probe-77      [000] .....     5.123456: kvm_page_fault: "
        "vcpu 0 rip 0x3000 address 0x10 error_code 0x4"
    )

    event = read_event(line, HVAS, 4096)

    assert event == Event(
        "probe", "kvm_page_fault", "vcpu 0 rip 0x3000 address 0x10 error_code 0x4"
    )


def test_host_addresses_are_a_memory_and_a_page():
    line = (
        " ksmd-30 [000] ..... 5.1: kvm_unmap_hva_range: mmu notifier unmap range: "
        "0x00007f0040026000 -- 0x00007f0040027000"
    )

    event = read_event(line, HVAS, 4096)

    assert event.text == "mmu notifier unmap range: hva1+0x1p -- hva1+0x2p"


def test_a_notifiers_event_about_other_memory_is_dropped():
    line = (
        " probe-77 [000] ..... 5.1: kvm_unmap_hva_range: mmu notifier unmap range: "
        "0x00007ffff0026000 -- 0x00007ffff0027000"
    )

    assert read_event(line, HVAS, 4096) is None


def test_what_is_no_event_is_dropped():
    assert read_event("CPU:0 [LOST 12 EVENTS]", HVAS, 4096) is None
