"""One row of the table `events`: what was to happen when, and when it did."""

from testbed.protocol.message import Value

__all__ = ["Row", "event_row"]

Row = dict[str, Value]


def event_row(
    number: int,
    destination: str,
    action: str,
    *,
    intended_s: float,
    applied_s: float,
    acknowledged_s: float,
    source: str | None = None,
    rate_mbps: float | None = None,
    loss_pct: float | None = None,
    sampled_s: float | None = None,
    delivered_bytes: int | None = None,
    waiting_bytes: int | None = None,
) -> Row:
    """Return the row of the scenario's event `number`, in seconds since the program has started on every device.

    At `sampled_s`, just after the change, the link had delivered so many bytes, and so many more waited for it.
    """
    return {
        "event": number,
        "destination": destination,
        "source": source,
        "action": action,
        "rate_mbps": rate_mbps,
        "loss_pct": loss_pct,
        "intended_s": intended_s,
        "applied_s": round(applied_s, 6),
        "acknowledged_s": round(acknowledged_s, 6),
        "late_ms": round(1e3 * (applied_s - intended_s), 3),
        "sampled_s": None if sampled_s is None else round(sampled_s, 6),
        "delivered_bytes": delivered_bytes,
        "waiting_bytes": waiting_bytes,
    }
