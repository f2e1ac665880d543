"""``python -m kvmarch`` is the command line."""

from kvmarch.cli import main

main()
