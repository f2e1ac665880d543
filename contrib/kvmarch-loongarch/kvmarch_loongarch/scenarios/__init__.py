"""Scenario files: historical bugs of KVM/LoongArch (fact sheet loongarch, 5)."""
