"""How long a strategy would take, from what it does and how fast devices and links are. Pure.

    work.py       what a step costs, in operations, values and calls        speed.py   seconds for each of them
    schedule.py   who computes, sends and waits in which order              links.py   seconds for a message
    rings.py      ring exchanges, hop by hop                                tables.py  keys made of peers' codes
    simulate.py   the clocks of all ranks through a schedule                forecast.py   latency and its parts

A strategy may state its schedule (`Strategy.schedule`); for one that does not, `schedule.of_messages` makes one of its
ranges and messages. Nothing here knows a strategy by name, or reaches a device.
"""
