"""The sample project runs in an environment of its own, never in this one."""

collect_ignore = ["downstream"]
