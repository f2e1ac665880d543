"""KVM's generic code and the host mm, as paths over the machine."""
