"""x86: KVM with EPT or NPT, direct maps only."""
