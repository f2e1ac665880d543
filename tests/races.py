"""Scenarios that race, for tests of those who explore many cells."""

RACE = """
title = "a guest reads while its page is thrown away"
setup = ["slot id=0 memory=ram gfn=0"]
[vm]
memory = [{ name = "ram", pages = 1 }]
[[task]]
name = "vcpu"
steps = ["read gfn=0"]
[[task]]
name = "vmm"
steps = ["dontneed memory=ram page=0 pages=1"]
"""
"""Some hundred states."""

TIMES = {"seconds", "states_per_s", "peak_mib"}
"""Columns of a table that are another in each run."""
