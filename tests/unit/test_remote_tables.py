"""Tables equal projections; they are made where they are faster and there is memory for them."""

import pytest
import torch
from torch import Tensor

from astra import remote_tables
from astra.attention import split_heads
from astra.codebook import GroupedCodebook
from astra.remote_tables import KeyValueTable, Way
from astra.strategy_config import TableType

WIDTH, NUM_CODEWORDS, NUM_HEADS = 24, 16, 3
ROUNDING = 1e-5  # fp32 sums in another order
TYPES: tuple[TableType, TableType] = ("fp32", "fp16")
TABLE_BYTES = 2 * WIDTH * NUM_CODEWORDS * 4
"""Of one group."""


class Projection:
    """A block's key and value projection."""

    def __init__(self, bias: bool = True):
        self.key_value_weight = torch.randn(2 * WIDTH, WIDTH)
        self.key_value_bias = torch.randn(2 * WIDTH) if bias else None

    def key_value_unrotated(self, u_BTD: Tensor) -> tuple[Tensor, Tensor]:
        k_BTD, v_BTD = torch.nn.functional.linear(u_BTD, self.key_value_weight, self.key_value_bias).chunk(2, dim=-1)
        return split_heads(k_BTD, NUM_HEADS), split_heads(v_BTD, NUM_HEADS)


def random_codebook(num_groups: int) -> GroupedCodebook:
    return GroupedCodebook(torch.randn(num_groups, NUM_CODEWORDS, WIDTH // num_groups))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("num_groups", "way"), [(1, "look-up"), (4, "bag")])
def test_table_equals_dequantise_and_project(num_groups: int, way: Way, bias: bool) -> None:
    codebook, block = random_codebook(num_groups), Projection(bias)
    table, projected = KeyValueTable(codebook, block, way), KeyValueTable(codebook, block, "project")
    codes_BRG = torch.randint(0, NUM_CODEWORDS, (2, 9, num_groups))
    for from_table, from_projection in zip(
        table.remote_key_value(codes_BRG), projected.remote_key_value(codes_BRG), strict=True
    ):
        assert from_table.shape == (2, NUM_HEADS, 9, WIDTH // NUM_HEADS)
        torch.testing.assert_close(from_table, from_projection, rtol=ROUNDING, atol=ROUNDING * WIDTH)


HALF = 2**-11  # what a number is rounded by in fp16, relative to it


def test_a_bag_in_half_precision_is_off_by_rounding_alone() -> None:
    codebook, block = random_codebook(4), Projection()
    codes_BRG = torch.randint(0, NUM_CODEWORDS, (2, 9, 4))
    exact, rounded = (KeyValueTable(codebook, block, "bag", each).remote_key_value(codes_BRG) for each in TYPES)
    for wanted, got in zip(exact, rounded, strict=True):
        assert got.dtype == torch.float32
        assert not torch.equal(got, wanted)
        torch.testing.assert_close(got, wanted, rtol=HALF, atol=5 * HALF * float(wanted.abs().max()))


def test_numbers_that_fp16_cannot_hold_stay_as_they_are() -> None:
    """Each row would fit, but not their sum."""
    codebook, block = random_codebook(4), Projection(bias=False)
    codes_BRG = torch.randint(0, NUM_CODEWORDS, (1, 9, 4))
    largest = KeyValueTable(codebook, block, "bag").remote_key_value(codes_BRG)[0].abs().max()
    block.key_value_weight *= 65504 / largest
    exact, other = (KeyValueTable(codebook, block, "bag", each).remote_key_value(codes_BRG) for each in TYPES)
    assert all(torch.equal(wanted, got) for wanted, got in zip(exact, other, strict=True))


def ways_of(num_groups: int, budget_bytes: int, tables: TableType = "fp32") -> list[Way]:
    """Return the ways of three layers."""
    codebooks, blocks = [random_codebook(num_groups) for _ in range(3)], [Projection() for _ in range(3)]
    made = remote_tables.remote_tables(codebooks, blocks, num_remote=9, tables=tables, budget_bytes=budget_bytes)
    return [table.way for table in made]


@pytest.mark.parametrize(
    ("num_groups", "tables", "budget_bytes", "ways"),
    [
        (1, "fp32", 3 * TABLE_BYTES, ["look-up"] * 3),
        (1, "fp16", 3 * TABLE_BYTES - 1, ["look-up", "look-up", "project"]),
        (4, "fp32", 3 * 4 * TABLE_BYTES, ["bag"] * 3),
        (4, "fp16", 3 * 2 * TABLE_BYTES, ["bag"] * 3),
        (4, "fp32", 2 * 4 * TABLE_BYTES - 1, ["bag", "project", "project"]),
        (4, "fp32", 0, ["project"] * 3),
    ],
)
def test_tables_are_made_for_as_many_layers_as_fit(
    num_groups: int, tables: TableType, budget_bytes: int, ways: list[Way], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_tables, "READ_PRICE", {"fp16": 1.0, "fp32": 2.0})  # tokens here are narrow
    assert ways_of(num_groups, budget_bytes, tables) == ways


def test_tokens_so_narrow_that_projecting_costs_less_are_projected() -> None:
    """24 multiplications a number against 4 numbers of a table at the price of 10 each."""
    assert ways_of(4, 1 << 30, "fp16") == ["project"] * 3
    assert ways_of(2, 1 << 30, "fp16") == ["bag"] * 3
    assert ways_of(2, 1 << 30, "fp32") == ["project"] * 3


def test_budget_is_a_share_of_the_device_but_never_more_than_half_of_what_is_spare(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote_tables, "allowed_bytes", lambda: 1000)
    monkeypatch.setattr(remote_tables, "spare_bytes", lambda: 800)
    assert remote_tables.table_budget() == 300
    monkeypatch.setattr(remote_tables, "spare_bytes", lambda: 400)
    assert remote_tables.table_budget() == 200


def test_nothing_is_tabled_where_nothing_is_remote() -> None:
    tables = remote_tables.remote_tables(
        [random_codebook(1)], [Projection()], num_remote=0, tables="fp16", budget_bytes=1 << 30
    )
    assert [table.way for table in tables] == ["project"]
