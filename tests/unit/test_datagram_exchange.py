"""Strategies whose rows may be lost: what is missing is left out, taken from the layer before, or sent twice."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datagram_worlds import Loses, Served, serve
from strategy_worlds import EXACT, inputs_for, lively, relative_error
from strategy_worlds import serve as serve_reliably
from torch import Tensor

from astra.attention import attend, merge_heads
from astra.cache import KeyValueCache
from astra.codebook import GroupedCodebook, save_codebooks, translation
from astra.config import AstraConfig, PrismConfig
from astra.models import ModelAdapter
from astra.partial_attention import KeyValues, attend_part, hide_absent
from astra.patience import (
    FEWEST_OFFSETS,
    FIRST_LIMIT_S,
    GROWTH,
    LEAST_SLACK_S,
    MOST_SLACK_S,
    REMEMBERED,
    SPREADS,
    Patience,
)
from astra.segments import segment_means
from astra.strategies import predict_messages
from astra.traffic import bytes_of
from astra.transport.datagram_framing import Datagram
from astra.transport_config import DatagramConfig, ReliableConfig
from testbed.loss import GilbertElliott, drop_pattern

SAME = 1e-5
"""Relative; the same numbers, added up in another order."""
GENEROUS = DatagramConfig(deadline_ms=3000)
"""What is not lost arrives, however busy the machine."""
BRIEF = DatagramConfig(deadline_ms=60)
"""For tests in which whatever does not come was lost on purpose."""
WEIGHTS = [3.0, 2.0, 2.0]


@pytest.fixture
def model() -> ModelAdapter:
    return lively("vit")


def codebook_folder(folder: Path, model: ModelAdapter, groups: int) -> Path:
    generator = torch.Generator().manual_seed(1)
    size = (groups, 16, model.shape.width // groups)
    save_codebooks(folder, [GroupedCodebook(torch.randn(size, generator=generator)) for _ in model.blocks])
    return folder


def astra(transport: Any, groups: int = 2) -> AstraConfig:
    return AstraConfig(num_groups=groups, num_codewords=16, transport=transport)


def prism(transport: Any) -> PrismConfig:
    return PrismConfig(num_segments=3, transport=transport)


MAKERS: list[Callable[[Any], AstraConfig | PrismConfig]] = [astra, prism]


def from_rank(sender: int, *, layer: int | None = None) -> Loses:
    """Lose everything that a rank sends in a layer, or in all."""
    return lambda _, receiver, datagram: datagram.sender == sender and layer in (None, datagram.label.layer)


def everything(position: int, receiver: int, datagram: Datagram) -> bool:
    return True


def but_in_layer(kept: int) -> Loses:
    """Lose everything but what belongs to a layer."""
    return lambda _, receiver, datagram: datagram.label.layer != kept


def first_copy(position: int, receiver: int, datagram: Datagram) -> bool:
    """Lose every other packet of a link on which copies follow one another."""
    return position % 2 == 0


# What is missing is left out


def test_hidden_keys_count_for_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, length, 8, generator=generator) for length in (5, 7, 7))
    own_bias = torch.randn(7, generator=generator)
    absent = torch.tensor([True, False, True, True, False, False, True])
    for bias in (None, own_bias):
        hidden = attend_part(q, KeyValues(k, v, hide_absent(bias, absent)))
        kept = KeyValues(k[:, :, ~absent], v[:, :, ~absent], None if bias is None else bias[~absent])
        for found, expected in zip(hidden, attend_part(q, kept), strict=True):
            assert relative_error(found, expected) < SAME
    assert hide_absent(own_bias, None) is own_bias
    assert hide_absent(None, None) is None


@pytest.mark.parametrize("maker", MAKERS, ids=["astra", "prism"])
def test_nothing_lost_equals_reliable(model: ModelAdapter, tmp_path: Path, maker: Any) -> None:
    folder, inputs = codebook_folder(tmp_path / "books", model, 2), inputs_for(model, batch=2)
    served = serve(model, maker(GENEROUS), WEIGHTS, inputs, codebooks=folder)
    assert (served.missing, served.expected > 0) == (0, True)
    expected = serve_reliably(model, maker(ReliableConfig()), WEIGHTS, inputs, folder).logits
    assert relative_error(served.logits[0], expected) < SAME


def alone(model: ModelAdapter, inputs: Tensor, tokens: range, class_token: bool) -> Tensor:
    """Return the first row of x after all layers of a model that has only these tokens, computed without a strategy."""
    x_BTD = model.embed_content(inputs, tokens, 0)
    if class_token:
        x_BTD = torch.cat((model.embed_class(len(inputs)), x_BTD), dim=1)
    for block in model.blocks:
        u_BTD = block.attention_input(x_BTD)
        k_BHTd, v_BHTd = block.key_value(u_BTD)
        x_BTD = block.finish(x_BTD, attend(block.query(u_BTD), k_BHTd, v_BHTd))
    return x_BTD[:, 0]


@torch.inference_mode()
@pytest.mark.parametrize("groups", [1, 2])
def test_astra_without_any_code_attends_to_own_tokens_only(model: ModelAdapter, tmp_path: Path, groups: int) -> None:
    folder, inputs = codebook_folder(tmp_path / "books", model, groups), inputs_for(model)
    class_layer = but_in_layer(len(model.blocks))
    config = astra(BRIEF, groups)
    served = serve(model, config, [1.0, 1.0, 1.0], inputs, codebooks=folder, loses=class_layer)
    assert served.missing == served.expected - 2  # rank 0 had both class copies
    tokens = [range(9), range(9, 17), range(17, 25)]
    copies = [alone(model, inputs, each, class_token=True) for each in tokens]
    assert relative_error(served.logits[0], model.head(torch.stack(copies).mean(dim=0))) < EXACT


@torch.inference_mode()
@pytest.mark.parametrize("lost", [(1,), (1, 2)], ids=["one", "all"])
def test_astra_answers_by_the_class_copies_that_came(
    model: ModelAdapter, tmp_path: Path, lost: tuple[int, ...]
) -> None:
    folder, inputs = codebook_folder(tmp_path / "books", model, 2), inputs_for(model)

    def loses(_: int, receiver: int, datagram: Datagram) -> bool:
        return datagram.label.layer < len(model.blocks) or datagram.sender in lost

    served = serve(model, astra(BRIEF), [1.0, 1.0, 1.0], inputs, codebooks=folder, loses=loses)
    tokens = {0: range(9), 1: range(9, 17), 2: range(17, 25)}
    copies = [alone(model, inputs, each, class_token=True) for rank, each in tokens.items() if rank not in lost]
    assert relative_error(served.logits[0], model.head(torch.stack(copies).mean(dim=0))) < EXACT


@torch.inference_mode()
def test_prism_without_any_mean_attends_to_own_tokens_only(model: ModelAdapter) -> None:
    inputs = inputs_for(model)
    served = serve(model, prism(BRIEF), [1.0, 1.0, 1.0], inputs, loses=everything)
    assert relative_error(served.logits[0], model.head(alone(model, inputs, range(9), class_token=True))) < EXACT


@pytest.mark.parametrize("maker", MAKERS, ids=["astra", "prism"])
def test_one_lost_datagram_changes_the_answer_and_is_counted(model: ModelAdapter, tmp_path: Path, maker: Any) -> None:
    folder, inputs = codebook_folder(tmp_path / "books", model, 2), inputs_for(model)
    whole = serve(model, maker(GENEROUS), [1.0, 1.0], inputs, codebooks=folder)
    config = maker(DatagramConfig(deadline_ms=1000))
    served = serve(model, config, [1.0, 1.0], inputs, codebooks=folder, loses=from_rank(1, layer=2))
    rows = 12 if maker is astra else 3
    assert (served.missing, served.expected) == (rows, whole.expected)
    assert relative_error(served.logits[0], whole.logits[0]) > EXACT


def test_what_arrives_of_a_split_message_is_used(model: ModelAdapter) -> None:
    """Means of 64 numbers in fp32, of two inputs at once: two fit in a datagram, so that there are two datagrams."""
    inputs = inputs_for(model, batch=2)
    config = PrismConfig(num_segments=4, transport=DatagramConfig(deadline_ms=1000))

    def second_half(position: int, receiver: int, datagram: Datagram) -> bool:
        return datagram.label.number == 1 and datagram.label.parts == 2

    served = serve(model, config, [1.0, 1.0], inputs, loses=second_half)
    assert {datagram.label.parts for _, datagram in served.sent[0]} == {2}
    assert served.missing == served.expected // 2


# Stale


def test_stale_means_are_those_of_the_layer_before(model: ModelAdapter) -> None:
    inputs = inputs_for(model)
    config = prism(DatagramConfig(deadline_ms=1000, on_missing="stale"))
    masked = serve(model, prism(DatagramConfig(deadline_ms=1000)), [1.0, 1.0], inputs, loses=from_rank(1, layer=2))
    stale = serve(model, config, [1.0, 1.0], inputs, loses=from_rank(1, layer=2))
    assert stale.missing == masked.missing == 3, "they count as missing all the same"

    def repeated(means: list[bytes]) -> bytes:
        return means[1]

    sent = [datagram.piece for _, datagram in stale.sent[1]]
    expected = with_means_of_rank_1(model, inputs, [sent[0], sent[1], repeated(sent), sent[3]])
    assert relative_error(stale.logits[0], expected) < EXACT
    assert relative_error(masked.logits[0], expected) > EXACT


@torch.inference_mode()
def with_means_of_rank_1(model: ModelAdapter, inputs: Tensor, pieces: list[bytes]) -> Tensor:
    """Run rank 0's part of PRISM on two ranks, with these means from the other."""
    x_BTD = torch.cat((model.embed_class(1), model.embed_content(inputs, range(13), 0)), dim=1)
    for block, piece in zip(model.blocks, pieces, strict=True):
        means_BSD = torch.frombuffer(bytearray(piece), dtype=torch.float32).view(1, 3, -1)
        u_BTD, u_BSD = block.attention_input(x_BTD), block.attention_input(means_BSD)
        (own_k, own_v), (k, v) = block.key_value(u_BTD), block.key_value(u_BSD)
        keys, values = (torch.cat((own, *[means] * 4), dim=2) for own, means in ((own_k, k), (own_v, v)))
        x_BTD = block.finish(x_BTD, attend(block.query(u_BTD), keys, values))
    return model.head(x_BTD[:, 0])


def test_stale_codes_are_missing_in_layer_0_and_never_unknown_after(model: ModelAdapter, tmp_path: Path) -> None:
    folder, inputs = codebook_folder(tmp_path / "books", model, 2), inputs_for(model)
    lost_once = serve(
        model,
        astra(DatagramConfig(deadline_ms=60, on_missing="stale")),
        [1.0, 1.0],
        inputs,
        codebooks=folder,
        loses=everything,
    )
    masked = serve(model, astra(BRIEF), [1.0, 1.0], inputs, codebooks=folder, loses=everything)
    assert relative_error(lost_once.logits[0], masked.logits[0]) < SAME, "nothing to take them from"


def test_translation_names_the_nearest_codeword_of_the_next_layer() -> None:
    generator = torch.Generator().manual_seed(5)
    before, after = (GroupedCodebook(torch.randn(2, 8, 4, generator=generator)) for _ in range(2))
    table_KG = translation(before, after)
    assert table_KG.shape == (8, 2)
    for group in range(2):
        distances = torch.cdist(before.codewords_GKd[group], after.codewords_GKd[group])
        assert torch.equal(table_KG[:, group], distances.argmin(dim=1))
    assert torch.equal(translation(after, after)[:, 0], torch.arange(8))


# Copies, parity, bursts


@pytest.mark.parametrize("maker", MAKERS, ids=["astra", "prism"])
def test_a_copy_stands_in_for_what_is_lost(model: ModelAdapter, tmp_path: Path, maker: Any) -> None:
    folder, inputs = codebook_folder(tmp_path / "books", model, 2), inputs_for(model)
    config = maker(DatagramConfig(deadline_ms=3000, copies=2))
    served = serve(model, config, [1.0, 1.0], inputs, codebooks=folder, loses=first_copy)
    assert served.missing == 0
    assert relative_error(served.logits[0], serve(model, config, [1.0, 1.0], inputs, codebooks=folder).logits[0]) < SAME


def test_copies_are_sent_in_rounds_over_parts_and_peers(model: ModelAdapter) -> None:
    config = PrismConfig(num_segments=4, transport=DatagramConfig(deadline_ms=3000, copies=2, parity=True))
    served = serve(model, config, [1.0, 1.0, 1.0], inputs_for(model, batch=2))
    order = [(receiver, datagram.label.number) for receiver, datagram in served.sent[0] if datagram.label.layer == 0]
    parts_and_parity = range(3)
    assert order == [(receiver, number) for _ in range(2) for number in parts_and_parity for receiver in (1, 2)]


def test_parity_gives_back_one_datagram_of_a_message(model: ModelAdapter) -> None:
    config = PrismConfig(num_segments=4, transport=DatagramConfig(deadline_ms=3000, parity=True))
    inputs = inputs_for(model, batch=2)

    def one_of_three(position: int, receiver: int, datagram: Datagram) -> bool:
        return datagram.label.number == datagram.label.layer % 3

    served = serve(model, config, [1.0, 1.0], inputs, loses=one_of_three)
    assert served.missing == 0
    whole = serve(model, config, [1.0, 1.0], inputs)
    assert relative_error(served.logits[0], whole.logits[0]) < SAME


@pytest.mark.parametrize("maker", MAKERS, ids=["astra", "prism"])
@pytest.mark.parametrize("changes", [{}, {"copies": 3}, {"parity": True}, {"copies": 2, "parity": True}], ids=str)
def test_plan_is_what_is_sent(model: ModelAdapter, tmp_path: Path, maker: Any, changes: dict[str, Any]) -> None:
    folder = codebook_folder(tmp_path / "books", model, 2)
    config = maker(DatagramConfig(deadline_ms=3000, **changes))
    served = serve(model, config, WEIGHTS, inputs_for(model), codebooks=folder)
    planned = [message for message in predict_messages(model.shape, config, 3, WEIGHTS) if message.is_datagram]
    for rank, traffic in enumerate(served.traffic):
        own = [message for message in planned if message.source == rank]
        assert (traffic.sent, traffic.payload_bytes_sent) == (sum(message.count for message in own), bytes_of(own))


def lost_share(copies: int, parts: int, in_rounds: bool) -> float:
    """Send messages of so many parts over a link with bursts; return the share of parts of which every copy is lost."""
    loss = GilbertElliott(enter=0.02, leave=0.33, bad_loss=0.8)
    pattern = drop_pattern(loss, seed=7, source="d0", destination="d1")
    shares = []
    for begin in range(0, len(pattern) - copies * parts, copies * parts):
        packets = pattern[begin : begin + copies * parts]
        by_copy = packets.reshape(copies, parts) if in_rounds else packets.reshape(parts, copies).T
        shares.append(float(by_copy.all(axis=0).mean()))
    return statistics.fmean(shares)


def test_copies_sent_in_rounds_are_both_lost_less_often() -> None:
    """Over 65,536 packets with bursts 4.6 % are lost, of copies side by side 2.5 %, of copies in rounds of 8 0.3 %."""
    single, adjacent, rounds = lost_share(1, 8, True), lost_share(2, 8, False), lost_share(2, 8, True)
    assert single > 1.5 * adjacent > 6 * rounds
    assert lost_share(2, 1, True) == lost_share(2, 1, False), "with one datagram a message nothing lies between copies"


# Deadlines


def test_latency_is_bounded_by_the_deadline(model: ModelAdapter, tmp_path: Path) -> None:
    folder, inputs = codebook_folder(tmp_path / "books", model, 2), inputs_for(model)
    requests, layers = 4, len(model.blocks)
    began_s = time.monotonic()
    serve(model, astra(GENEROUS), [1.0, 1.0], inputs, codebooks=folder, requests=requests)
    computing_s = time.monotonic() - began_s
    began_s = time.monotonic()
    served = serve(model, astra(BRIEF), [1.0, 1.0], inputs, codebooks=folder, requests=requests, loses=everything)
    elapsed_s = time.monotonic() - began_s
    waits_s = requests * sum(0.06 * (1 + GROWTH * layer) for layer in range(layers + 1))
    assert waits_s < elapsed_s < waits_s + 3 * computing_s + 1.0
    assert len(served.logits) == requests


def test_what_is_lost_is_not_waited_for_once_its_sender_is_a_layer_on(model: ModelAdapter, tmp_path: Path) -> None:
    folder, inputs = codebook_folder(tmp_path / "books", model, 2), inputs_for(model)
    began_s = time.monotonic()
    patient = DatagramConfig(deadline_ms=60_000)
    served = serve(model, astra(patient), [1.0, 1.0], inputs, codebooks=folder, requests=2, loses=from_rank(1, layer=0))
    assert time.monotonic() - began_s < 30
    assert served.missing == 2 * (model.shape.num_content_tokens // 2)


def test_patience_is_what_is_given() -> None:
    patience = Patience(DatagramConfig(deadline_ms=30))
    patience.note(1, 0, 9.0)
    assert (patience.limit_s(1, 0), patience.limit_s(2, 0)) == (0.03, 0.03)
    assert patience.limit_s(1, 5) == pytest.approx(0.03 * (1 + 5 * GROWTH)), "who has waited is waited for"


def test_patience_is_the_usual_offset_of_a_peer_and_slack() -> None:
    patience = Patience(DatagramConfig(slack_ms=10))
    assert patience.limit_s(1, 3) == FIRST_LIMIT_S
    for offset_s in (0.002, 0.004, 5.0):
        patience.note(1, 3, offset_s)
    assert patience.limit_s(1, 8) == pytest.approx(0.004 + 0.010 * (1 + 8 * GROWTH))
    assert patience.limit_s(2, 8) == FIRST_LIMIT_S, "another peer is as far away as it is"
    assert patience.limit_s(1, 0) == FIRST_LIMIT_S, "layer 0 waits for the request to begin"
    patience.note(1, 0, 0.3)
    assert patience.limit_s(1, 0) == pytest.approx(0.31)


def test_slack_that_is_not_given_is_a_multiple_of_the_usual_spread() -> None:
    patience = Patience(DatagramConfig())
    offsets_s = [0.010, 0.011, 0.012] * 4
    for offset_s in offsets_s[: FEWEST_OFFSETS - 1]:
        patience.note(1, 1, offset_s)
        assert patience.limit_s(1, 1) > MOST_SLACK_S, "little is known yet"
    for offset_s in offsets_s:
        patience.note(1, 1, offset_s)
    even = patience.limit_s(1, 1)
    assert even == pytest.approx(0.011 + SPREADS * 0.002 * (1 + GROWTH), abs=1e-3)
    for _ in range(REMEMBERED // 5):
        patience.note(1, 1, 0.05)
    assert patience.limit_s(1, 1) < even + 0.005, "a fifth that waited for what was lost changes little"
    for offset_s in [0.010, 0.050] * REMEMBERED:
        patience.note(1, 1, offset_s)
    assert patience.limit_s(1, 1) == pytest.approx(0.03 + MOST_SLACK_S * (1 + GROWTH)), "it is bounded"


def test_peers_in_step_are_given_what_a_scheduler_may_take() -> None:
    patience = Patience(DatagramConfig())
    for _ in range(FEWEST_OFFSETS):
        patience.note(1, 1, 0.010)
    assert patience.limit_s(1, 1) == pytest.approx(0.010 + LEAST_SLACK_S * (1 + GROWTH))


def test_patience_with_a_peer_that_is_ahead_is_slack_alone() -> None:
    patience = Patience(DatagramConfig(slack_ms=10))
    patience.note(1, 1, -4.0)
    assert patience.limit_s(1, 1) == pytest.approx(0.010 * (1 + GROWTH))


def test_patience_follows_a_peer_that_becomes_slower() -> None:
    patience = Patience(DatagramConfig(slack_ms=10))
    for offset_s in [0.001] * 100 + [0.2] * (REMEMBERED // 2 + 1):
        patience.note(1, 1, offset_s)
    assert patience.limit_s(1, 1) == pytest.approx(0.2 + 0.010 * (1 + GROWTH))


def test_means_of_a_batch_lie_side_by_side() -> None:
    """What the reference above takes apart: a segment's means of all inputs travel together."""
    x_BTD = torch.randn(2, 6, 4)
    means_BSD = segment_means(x_BTD, (range(3), range(3, 6)))
    assert torch.equal(means_BSD.transpose(0, 1).flatten(1)[0], means_BSD[:, 0].flatten())


def test_served_world_counts_what_it_lost(model: ModelAdapter) -> None:
    served: Served = serve(
        model, prism(DatagramConfig(deadline_ms=500)), [1.0, 1.0], inputs_for(model), loses=from_rank(0)
    )
    assert served.missing == served.expected // 2


def test_cache_keeps_what_is_absent_in_one_layer_from_that_layer_only() -> None:
    cache, generator = KeyValueCache(new_tokens=1), torch.Generator().manual_seed(0)
    k, v = (torch.randn(1, 2, 4, 8, generator=generator) for _ in range(2))
    q = torch.randn(1, 2, 1, 8, generator=generator)
    own, remote = KeyValues(k[:, :, 2:], v[:, :, 2:]), KeyValues(k[:, :, :2], v[:, :, :2])
    cache.keep(0, own, remote._replace(bias_S=hide_absent(None, torch.tensor([True, False]))))
    cache.keep(1, own, remote)
    contexts = [merge_heads(cache.attend(layer, q).context_BHTd) for layer in range(2)]
    assert torch.allclose(contexts[0], attend(q, k[:, :, 1:], v[:, :, 1:]), atol=SAME)
    assert torch.allclose(contexts[1], attend(q, k, v), atol=SAME)
    cache.keep(0, own, remote)
    again = merge_heads(cache.attend(0, q).context_BHTd)
    assert torch.equal(again, contexts[1]), "the next prompt has its own"
