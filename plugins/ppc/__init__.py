"""ppc: KVM on Book3S HV (radix and hash), Book3S PR and e500."""
