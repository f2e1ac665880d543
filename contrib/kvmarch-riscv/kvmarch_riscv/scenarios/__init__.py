"""Bugs of KVM/RISC-V that the fact sheet has a schedule for."""
