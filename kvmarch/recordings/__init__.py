"""Recordings of real kernels, and their comparison with the model."""
