"""`python -m astra` is `astra`."""

from astra.cli import main

main()
