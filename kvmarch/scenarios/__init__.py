"""Scenarios: the files, the verbs of their steps, and how one is played."""
