"""Recordings of real RISC-V kernels."""
