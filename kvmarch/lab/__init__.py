"""Real kernels under emulation: what scenarios do on them, and what is seen of it."""
