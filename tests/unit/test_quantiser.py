"""A quantiser quantises as its codebook does, learns by moving averages, and passes gradients straight through."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from astra.codebook import GroupedCodebook
from astra.training.quantiser import LayerQuantiser, QuantiserConfig, nearest_codes

DECAY = 0.9
ROUNDING = 1e-5  # relative; the same sums of fp32, in another order
GROUPS, CODEWORDS, WIDTH = 2, 8, 12
CONFIG = QuantiserConfig(num_groups=GROUPS, num_codewords=CODEWORDS, ema_decay=DECAY)
LEARN_ONLY = CONFIG.model_copy(update={"noise": 0.0, "revive_below": 0.0})


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def quantiser(config: QuantiserConfig = CONFIG) -> LayerQuantiser:
    codewords = torch.randn(config.num_groups, config.num_codewords, WIDTH // config.num_groups, generator=seeded(1))
    return LayerQuantiser(codewords, config)


def tokens(seed: int, batch: int = 4, num_tokens: int = 30) -> Tensor:
    return torch.randn(batch, num_tokens, WIDTH, generator=seeded(seed))


@pytest.mark.parametrize("num_groups", [1, 3])
def test_quantiser_in_evaluation_is_its_codebook(num_groups: int) -> None:
    """Also for more rows than are scored at once, in two dimensions of batches."""
    layer = quantiser(CONFIG.model_copy(update={"num_groups": num_groups, "num_codewords": 1024})).eval()
    u_BTE = tokens(2, 7, 151)
    book = layer.to_codebook()
    codes_RG = book.encode(u_BTE.flatten(0, 1))
    assert torch.equal(nearest_codes(u_BTE.flatten(0, 1), layer.codewords_GKd), codes_RG)
    assert torch.equal(layer(u_BTE), book.decode(codes_RG).view_as(u_BTE))


def test_quantiser_takes_the_nearest_codeword() -> None:
    layer, u_RE = quantiser(), tokens(2).flatten(0, 1)
    expected = torch.stack(
        [
            torch.cdist(part, codewords).argmin(dim=1)
            for part, codewords in zip(u_RE.chunk(GROUPS, dim=1), layer.codewords_GKd, strict=True)
        ],
        dim=1,
    )
    assert torch.equal(nearest_codes(u_RE, layer.codewords_GKd), expected)


def test_quantiser_starts_from_a_codebook_and_returns_it() -> None:
    book = GroupedCodebook(torch.randn(GROUPS, CODEWORDS, 6, generator=seeded(3)))
    layer = LayerQuantiser.from_codebook(book, CONFIG)
    start, returned = book.codewords_GKd.clone(), layer.to_codebook()
    layer(tokens(4), seeded())
    assert torch.equal(book.codewords_GKd, start)
    assert torch.equal(returned.codewords_GKd, start)
    assert not torch.equal(layer.to_codebook().codewords_GKd, start)


@pytest.mark.parametrize("training", [True, False])
def test_quantiser_passes_the_gradient_straight_through(training: bool) -> None:
    u_BTE = tokens(5).requires_grad_()
    upstream_BTE = tokens(6)
    quantiser().train(training)(u_BTE, seeded()).backward(upstream_BTE)
    assert u_BTE.grad is not None
    assert torch.equal(u_BTE.grad, upstream_BTE)


def test_commitment_pulls_towards_the_codeword() -> None:
    layer, u_BTE = quantiser().eval(), tokens(5).requires_grad_()
    quantised_BTE = layer(u_BTE).detach()
    layer.commitment.backward()
    torch.testing.assert_close(layer.commitment, (u_BTE - quantised_BTE).square().mean())
    torch.testing.assert_close(u_BTE.grad, (2 * (u_BTE - quantised_BTE) / u_BTE.numel()).detach())


def test_commitment_is_of_the_codeword_without_noise_and_0_at_first() -> None:
    noisy, plain = quantiser(), quantiser(LEARN_ONLY)
    assert float(noisy.commitment) == 0
    noisy(tokens(5), seeded())
    plain(tokens(5), seeded())
    assert torch.equal(noisy.commitment, plain.commitment)


def test_codewords_are_moving_averages_of_their_tokens() -> None:
    """The closed form: what came s steps ago weighs (1 - decay)·decayˢ; the start, decayᵗ."""
    layer, num_steps = quantiser(LEARN_ONLY), 6
    start_GKd = layer.codewords_GKd.double()
    counts_GK, sums_GKd = torch.ones(GROUPS, CODEWORDS).double() * DECAY**num_steps, start_GKd * DECAY**num_steps
    for step in range(num_steps):
        u_RE = tokens(10 + step).flatten(0, 1)
        chosen_RGK = torch.nn.functional.one_hot(layer.to_codebook().encode(u_RE), CODEWORDS).double()
        weight = (1 - DECAY) * DECAY ** (num_steps - 1 - step)
        counts_GK += weight * chosen_RGK.sum(dim=0)
        sums_GKd += weight * torch.einsum("rgk,rgd->gkd", chosen_RGK, u_RE.view(-1, GROUPS, 6).double())
        layer(u_RE[None], seeded())
    torch.testing.assert_close(layer.counts_GK.double(), counts_GK, rtol=ROUNDING, atol=0)
    torch.testing.assert_close(
        layer.codewords_GKd.double(), sums_GKd / counts_GK[..., None], rtol=ROUNDING, atol=ROUNDING
    )


def far_away(layer: LayerQuantiser, group: int, code: int) -> None:
    """Move a codeword to where no token is."""
    layer.codewords_GKd[group, code] = 1e3
    layer.sums_GKd[group, code] = 1e3


def test_unused_codewords_become_tokens_of_the_batch_and_no_others_move() -> None:
    config = LEARN_ONLY.model_copy(update={"revive_below": 0.05})
    reviving, plain = quantiser(config), quantiser(LEARN_ONLY)
    for layer in (reviving, plain):
        far_away(layer, 0, 3)
        far_away(layer, 1, 5)
    for step in range(40):
        u_BTE = tokens(20 + step)
        before = reviving.codewords_GKd.clone()
        reviving(u_BTE, seeded(step))
        plain(u_BTE, seeded(step))
        if not torch.equal(reviving.codewords_GKd, plain.codewords_GKd):
            break
    moved_GK = (reviving.codewords_GKd != plain.codewords_GKd).any(dim=-1)
    assert moved_GK.nonzero().tolist() == [[0, 3], [1, 5]]
    assert float(before[0, 3].min()) > 100
    for group, code in ((0, 3), (1, 5)):
        parts = u_BTE.view(-1, GROUPS, 6)[:, group]
        assert bool((parts == reviving.codewords_GKd[group, code]).all(dim=1).any())
        assert float(reviving.counts_GK[group, code]) == pytest.approx(float(plain.counts_GK[group].mean()))
    torch.testing.assert_close(reviving.sums_GKd / reviving.counts_GK[..., None], reviving.codewords_GKd)


def test_codewords_that_are_never_revived_stay_where_they_are() -> None:
    layer = quantiser(LEARN_ONLY.model_copy(update={"ema_decay": 0.1}))
    far_away(layer, 0, 3)
    for step in range(60):  # 0.1 to the power of 60 is 0 in fp32
        layer(tokens(step), seeded())
    assert float(layer.counts_GK[0, 3]) == 0
    torch.testing.assert_close(layer.codewords_GKd[0, 3], torch.full((6,), 1e3))


def test_noise_is_added_in_training_only_and_scaled_by_lambda() -> None:
    u_BTE = tokens(7)
    plain = quantiser(LEARN_ONLY)(u_BTE, seeded(8))
    noise = [
        quantiser(CONFIG.model_copy(update={"noise": scale, "revive_below": 0.0}))(u_BTE, seeded(8)) - plain
        for scale in (1.0, 0.5)
    ]
    torch.testing.assert_close(noise[0], 2 * noise[1])
    residuals = u_BTE - plain
    assert float(noise[0].std()) == pytest.approx(float(residuals.std()), rel=0.1)
    layer = quantiser()
    layer(u_BTE, seeded(8))
    layer.eval()
    assert torch.equal(layer(u_BTE), layer(u_BTE, seeded(9)))
    assert torch.equal(
        layer(u_BTE), layer.to_codebook().decode(layer.to_codebook().encode(u_BTE.flatten(0, 1))).view_as(u_BTE)
    )


def test_evaluation_changes_no_state() -> None:
    layer = quantiser().eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(tokens(1))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_training_repeats_for_a_seed_and_goes_on_from_a_saved_state(covariance: str) -> None:
    config = CONFIG.model_copy(update={"covariance": covariance, "revive_below": 0.5})

    def run(layer: LayerQuantiser, steps: range, seed: int = 0) -> Tensor:
        out = torch.zeros(())
        for step in steps:
            out = layer(tokens(step), seeded(seed + step))
        return out

    whole, again, halved, other = (quantiser(config) for _ in range(4))
    expected = run(whole, range(20))
    assert torch.equal(run(again, range(20)), expected)
    assert not torch.equal(run(other, range(20), seed=99), expected)
    run(halved, range(9))
    resumed = LayerQuantiser(torch.zeros_like(halved.codewords_GKd), config)
    resumed.load_state_dict(halved.state_dict())
    assert torch.equal(run(resumed, range(9, 20)), expected)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_quantiser_in_autocast_takes_the_same_codes_in_fp32() -> None:
    layer = quantiser(LEARN_ONLY).eval()
    u_BTE = tokens(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(u_BTE), layer(u_BTE.clone()))
        half_BTE = layer(u_BTE.bfloat16())
    assert torch.equal(layer(u_BTE), layer(u_BTE.float()))
    assert half_BTE.dtype == torch.bfloat16
    assert torch.equal(half_BTE, layer(u_BTE.bfloat16().float()).bfloat16())


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_quantiser_makes_no_tensors_on_another_device(covariance: str) -> None:
    """`meta` tensors have no numbers, and go together with none of the CPU's."""
    layer = quantiser(CONFIG.model_copy(update={"covariance": covariance})).to("meta")
    u_BTE = tokens(1).to("meta").requires_grad_()
    out_BTE = layer(u_BTE, seeded())
    assert (out_BTE.device.type, out_BTE.shape) == ("meta", u_BTE.shape)
    (out_BTE.sum() + layer.commitment).backward()
    assert u_BTE.grad is not None


def test_training_without_a_generator_is_refused() -> None:
    with pytest.raises(AssertionError, match="repeatable"):
        quantiser()(tokens(1))


@pytest.mark.parametrize(
    ("field", "value"),
    [("beta", 0.0), ("noise", -0.1), ("ema_decay", 1.0), ("num_codewords", 1000), ("covariance", "block")],
)
def test_config_refuses_what_cannot_be_trained(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        QuantiserConfig.model_validate({field: value})
