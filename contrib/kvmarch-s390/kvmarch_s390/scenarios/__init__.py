"""Scenario files: bugs and candidates of KVM/s390 (fact sheet s390, 6), and a race."""
