"""`python -m tallrec`."""

from tallrec.cli import main

main()
