"""arm64: KVM with stage-2 translation."""
