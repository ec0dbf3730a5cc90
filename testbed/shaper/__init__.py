"""Shape what a device receives: rate, delay, queue and loss of every link that ends in the current network namespace.

    eth0 ingress --all IPv4, redirected--> tb-ifb: HTB, one class a source (rate, queue, delay)
                                             └──> back into the stack --> nftables (loss, counters) --> sockets

The agent owns one `Shaper`. `plan` and `nft` are pure text, `netlink` reads the kernel, `features` asks what it can do.
"""

from testbed.shaper.counts import LinkCounters
from testbed.shaper.features import has_netem, missing_features
from testbed.shaper.shaper import PreparedChange, Shaper

__all__ = ["LinkCounters", "PreparedChange", "Shaper", "has_netem", "missing_features"]
