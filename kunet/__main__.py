"""``python -m kunet`` is the command line."""

from kunet.cli import main

main()
