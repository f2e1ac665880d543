"""The machine under the kernel: steps, state, locks, TLBs and host memory."""
