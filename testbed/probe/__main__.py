"""`python3 -m testbed.probe`."""

from testbed.probe.program import main

main()
