"""What ASTRA's ranks do in one layer, in which order, for predictions. Pure.

encode ──► codes to whoever looks at them ──► project, attend to own keys while they are in flight ──►
look up, attend to them, finish
"""

from collections.abc import Sequence

from astra.models import ModelShape
from astra.planning.schedule import Step, Wait, per_rank, rows_seen, rows_shown, show_rows
from astra.planning.tables import expected_keys
from astra.planning.work import NOTHING, LayerWork, Work
from astra.remote_tables import value_bytes
from astra.rows import CodeRows
from astra.strategy_config import AstraConfig

__all__ = ["coded_layer", "table_width"]


def table_width(config: AstraConfig) -> float:
    """Return how many fp32 rows a codeword of every group takes in a table: half as many in half precision."""
    return config.num_groups * value_bytes(config.tables, config.num_groups) / value_bytes("fp32", config.num_groups)


def coded_layer(
    shape: ModelShape, config: AstraConfig, bits: int, content: Sequence[int], *, tables: float
) -> tuple[Step, ...]:
    """Return the steps of a layer whose codes have so many bits; the share `tables` of such layers has tables."""
    parts, classes, causal, num_codewords = LayerWork(shape), shape.num_class_tokens, shape.causal, 1 << bits
    width = config.quantised_width(shape.width, shape.kv_width)

    def encode(own: int, shown: int) -> Work:
        projected = parts.key_value(own + classes) if config.site == "kv" else NOTHING
        return projected + parts.quantise(shown, width, config.num_groups, num_codewords)

    def project(own: int) -> Work:
        projected = parts.key_value(own + classes) if config.site == "input" else NOTHING
        return projected + parts.query(own + classes) + parts.attend(own + classes, own + classes)

    def look(own: int, remote: int) -> Work:
        distinct = expected_keys(shape, config.num_groups, num_codewords, remote)
        rows = own + classes
        keys = parts.look_up(distinct, table_width(config) if config.site == "input" else 1) * tables
        if config.site == "input":
            keys += (parts.look_up(distinct) + parts.key_value(distinct)) * (1 - tables)
        return keys + parts.attend(rows, distinct) + parts.finish(rows)

    return (
        per_rank(encode, content, rows_shown(content, causal=causal)),
        show_rows(config.transport, CodeRows(bits), content, config.num_groups, causal=causal),
        per_rank(project, content),
        Wait(),
        per_rank(look, content, rows_seen(content, causal=causal)),
    )
