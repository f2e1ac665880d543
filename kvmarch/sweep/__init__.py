"""Sweeps: very many cells, over processes or machines, that outlive a crash."""
