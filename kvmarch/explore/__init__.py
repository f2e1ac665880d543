"""Every interleaving of a machine's tasks: the search, its schedules, its verdicts."""
