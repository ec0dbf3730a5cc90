"""N emulated devices compute what N real ones do: the same codes, and the same answer to 1e-5."""

import threading
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from strategy_worlds import FAMILIES, SPLITS, inputs_for, lively, relative_error, serve
from torch import Tensor

from astra.attention import merge_heads
from astra.clustering import fit_codebooks
from astra.codebook import GroupedCodebook, save_codebooks
from astra.config import AstraConfig
from astra.dealing import split_tokens
from astra.models import Block, ModelAdapter, adapt
from astra.partition import split
from astra.strategy_config import PrismConfig, Site, WireName
from astra.training.emulation import (
    Emulated,
    Quantise,
    answer_rows,
    emulate_astra,
    emulate_prism,
    emulate_single,
    owners_of,
)
from astra.training.quantiser import LayerQuantiser, QuantiserConfig
from astra.training.quantiser_config import ClassTokens

SAME = 1e-5  # relative; the same fp32 operations, in matrix products of another shape, over four layers
SAME_GRADIENT = 1e-4  # relative; sums over a batch as well
ALIKE = 0.8  # cosine; bf16 has three digits, and a token near the border of two cells may change its codeword
SITES: tuple[Site, ...] = ("input", "kv")
WORLDS = [weights for weights in SPLITS if len(weights) > 1]
UNEVEN = [1.0, 5.0, 2.0]
BATCH = 2
GROUPS = 2
CODEWORDS = 8

Books = Callable[[Site], list[GroupedCodebook]]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> ModelAdapter:
    return lively(request.param)


@pytest.fixture(scope="module")
def books(model: ModelAdapter) -> Books:
    """Return codebooks of few codewords, so that quantising changes the answer."""

    @cache
    def fitted(site: Site) -> list[GroupedCodebook]:
        return fit_codebooks(model, inputs_for(model, BATCH), GROUPS, CODEWORDS, seed=0, site=site)

    return fitted


def quantise_by(books: list[GroupedCodebook]) -> Quantise:
    """Return the quantisers that training has, in evaluation mode."""
    config = QuantiserConfig(num_groups=GROUPS, num_codewords=CODEWORDS)
    layers = [LayerQuantiser.from_codebook(book, config).eval() for book in books]
    return lambda layer, u_BTE: layers[layer](u_BTE)


def unchanged(layer: int, u_BTE: Tensor) -> Tensor:
    """Quantise with as many codewords as there are tokens."""
    return u_BTE


def error_of(found: Tensor, expected: Tensor) -> float:
    return relative_error(found.detach(), expected.detach())


def logits_of(model: ModelAdapter, emulated: Emulated) -> Tensor:
    return model.head(answer_rows(emulated, model.shape))


def ranges_of(model: ModelAdapter, weights: list[float]) -> tuple[range, ...]:
    return split(model.shape.num_content_tokens, weights)


class Codes:
    """The codes that the ranks of a real run made: for each layer, how often which."""

    def __init__(self, books: list[GroupedCodebook], monkeypatch: pytest.MonkeyPatch):
        self.of_layer: list[Counter[bytes]] = [Counter() for _ in books]
        self._lock = threading.Lock()
        encode = GroupedCodebook.encode

        def noted(book: GroupedCodebook, u_RD: Tensor) -> Tensor:
            codes_RG = encode(book, u_RD)
            layer = next(n for n, known in enumerate(books) if torch.equal(known.codewords_GKd, book.codewords_GKd))
            with self._lock:
                self.of_layer[layer][codes_RG.numpy().tobytes()] += 1
            return codes_RG

        monkeypatch.setattr(GroupedCodebook, "encode", noted)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("weights", WORLDS, ids=str)
def test_astra_equals_the_distributed_run_in_codes_and_answer(
    model: ModelAdapter,
    books: Books,
    site: Site,
    weights: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = AstraConfig(num_groups=GROUPS, num_codewords=CODEWORDS, site=site, tables="fp32")
    fitted, inputs, ranges = books(site), inputs_for(model, BATCH), split_tokens(model.shape, weights, config)
    save_codebooks(tmp_path, fitted)
    quantise, emulated_codes = quantise_by(fitted), [Counter[bytes]() for _ in fitted]

    def noted(layer: int, u_BTE: Tensor) -> Tensor:
        codes_RG = fitted[layer].encode(u_BTE.flatten(0, 1))
        for rank in sending:
            own_BTG = codes_RG.view(BATCH, -1, GROUPS)[:, ranges[rank].start : ranges[rank].stop]
            emulated_codes[layer][own_BTG.contiguous().numpy().tobytes()] += 1
        return quantise(layer, u_BTE)

    sending = range(len(ranges) - 1 if model.shape.causal else len(ranges))  # nobody looks at a causal model's last
    with torch.no_grad():
        emulated = emulate_astra(model, inputs, owners_of(ranges), len(ranges), quantise=noted, site=site)
    made = Codes(fitted, monkeypatch)
    world = serve(model, config, weights, inputs, tmp_path)
    assert made.of_layer == emulated_codes
    assert error_of(logits_of(model, emulated), world.logits) < SAME
    assert error_of(model.forward(inputs), world.logits) > 100 * SAME


@pytest.mark.parametrize("weights", WORLDS, ids=str)
@pytest.mark.parametrize("size", [{"num_segments": 1}, {"compression_ratio": 1.5}], ids=str)
def test_prism_equals_the_distributed_run(model: ModelAdapter, weights: list[float], size: dict[str, float]) -> None:
    config = PrismConfig.model_validate(size)
    inputs, ranges = inputs_for(model, BATCH), ranges_of(model, weights)
    if min(len(tokens) for tokens in ranges) < size.get("compression_ratio", 1):
        with pytest.raises(ValueError, match="compression_ratio must be at most"):
            emulate_prism(model, inputs, ranges, config)
        return
    found = logits_of(model, emulate_prism(model, inputs, ranges, config))
    assert error_of(found, serve(model, config, weights, inputs).logits) < SAME


@pytest.mark.parametrize("wire", ["fp16", "int8", "int4"])
def test_prism_rounds_means_as_the_wire_does_and_passes_gradients(model: ModelAdapter, wire: WireName) -> None:
    config, inputs = PrismConfig(num_segments=2, wire=wire), inputs_for(model, BATCH)
    ranges = ranges_of(model, UNEVEN)
    found = logits_of(model, emulate_prism(model, inputs, ranges, config))
    whole = logits_of(model, emulate_prism(model, inputs, ranges, PrismConfig(num_segments=2)))
    # a mean that differs by one rounding of fp32 may round to another step of the wire
    assert error_of(found, serve(model, config, UNEVEN, inputs).logits) < 0.1 * error_of(found, whole)
    gradients = gradients_of(model, lambda: emulate_prism(model, inputs, ranges, config))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0


def test_single_equals_the_model(model: ModelAdapter) -> None:
    inputs = inputs_for(model, BATCH)
    emulated = emulate_single(model, inputs)
    assert error_of(logits_of(model, emulated), model.forward(inputs)) < SAME
    assert emulated.content_BTD.shape == (BATCH, model.shape.num_content_tokens, model.shape.width)
    assert emulated.class_BND.shape == (BATCH, model.shape.num_class_tokens, model.shape.width)


@pytest.mark.parametrize("class_tokens", ["distributed", "single"])
@pytest.mark.parametrize("site", SITES)
def test_astra_with_owners_in_any_order_is_what_each_device_sees(
    model: ModelAdapter, books: Books, site: Site, class_tokens: ClassTokens
) -> None:
    owners_T = torch.randint(0, 3, (model.shape.num_content_tokens,), generator=torch.Generator().manual_seed(5))
    inputs, quantise = inputs_for(model, BATCH), quantise_by(books(site))
    found = emulate_astra(model, inputs, owners_T, 3, quantise=quantise, site=site, class_tokens=class_tokens)
    expected = device_by_device(model, inputs, owners_T, quantise, site, class_tokens)
    assert error_of(found.content_BTD, expected.content_BTD) < SAME
    if model.shape.num_class_tokens:
        assert found.class_BND.shape[1] == (3 if class_tokens == "distributed" else 1)
        assert error_of(found.class_BND, expected.class_BND) < SAME


def device_by_device(
    model: ModelAdapter, inputs: Tensor, owners_T: Tensor, quantise: Quantise, site: Site, class_tokens: ClassTokens
) -> Emulated:
    """Compute three devices one after the other, each on whole inputs in which other devices' tokens are quantised."""
    x_BTD, num_class = model.embed(inputs), model.shape.num_class_tokens
    copied = num_class if class_tokens == "distributed" else 0  # rows at the front that every device has
    owners = owners_T if copied else torch.cat((torch.zeros(num_class, dtype=torch.int64), owners_T))
    copies = [x_BTD] * 3
    for layer, block in enumerate(model.blocks):
        tokens_BTD = sum((copies[n][:, copied:] * (owners == n)[:, None] for n in range(3)), torch.zeros(()))
        assert isinstance(tokens_BTD, Tensor)
        seen = quantised_key_value(block, layer, tokens_BTD, quantise, site)
        for device in range(3):
            x_BTD = torch.cat((copies[device][:, :copied], tokens_BTD), dim=1)
            k, v = (part.clone() for part in block.key_value_unrotated(block.attention_input(x_BTD)))
            for own, other in zip((k, v), seen, strict=True):
                own[:, :, copied:] = torch.where((owners == device)[:, None], own[:, :, copied:], other)
            q = block.query(block.attention_input(x_BTD))
            repeats = q.shape[1] // k.shape[1]
            k, v = block.rotate(k).repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
            context = F.scaled_dot_product_attention(q, k, v, is_causal=model.shape.causal)
            copies[device] = block.finish(x_BTD, merge_heads(context))
    tokens_BTD = sum((copies[n][:, copied:] * (owners == n)[:, None] for n in range(3)), torch.zeros(()))
    assert isinstance(tokens_BTD, Tensor)
    if copied:
        return Emulated(tokens_BTD, torch.cat([x[:, :copied] for x in copies], dim=1))
    return Emulated(tokens_BTD[:, num_class:], tokens_BTD[:, :num_class])


def quantised_key_value(
    block: Block, layer: int, tokens_BTD: Tensor, quantise: Quantise, site: Site
) -> tuple[Tensor, Tensor]:
    u_BTD = block.attention_input(tokens_BTD)
    if site == "input":
        return block.key_value_unrotated(quantise(layer, u_BTD))
    k, v = block.key_value_unrotated(u_BTD)
    both = quantise(layer, torch.cat((merge_heads(k), merge_heads(v)), dim=-1)).chunk(2, dim=-1)
    hat_k, hat_v = (part.unflatten(-1, (k.shape[1], -1)).transpose(1, 2) for part in both)
    return hat_k, hat_v


@pytest.mark.parametrize("class_tokens", ["distributed", "single"])
@pytest.mark.parametrize("site", SITES)
def test_astra_without_loss_equals_single_in_gradients_too(
    model: ModelAdapter, site: Site, class_tokens: ClassTokens
) -> None:
    inputs, owners_T = inputs_for(model, BATCH), owners_of(ranges_of(model, UNEVEN)).flip(0)

    def astra() -> Emulated:
        return emulate_astra(model, inputs, owners_T, 3, quantise=unchanged, site=site, class_tokens=class_tokens)

    assert error_of(logits_of(model, astra()), model.forward(inputs)) < SAME
    expected = gradients_of(model, lambda: emulate_single(model, inputs))
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for found, wanted in zip(gradients_of(model, astra), expected, strict=True):
        assert float((found - wanted).abs().max()) < SAME_GRADIENT * largest


def test_emulation_trains_in_autocast(model: ModelAdapter, books: Books) -> None:
    """bf16 moves the answer by hundredths, and gradients still reach the parameters."""
    inputs, owners_T = inputs_for(model, BATCH), owners_of(ranges_of(model, UNEVEN))
    quantise = quantise_by(books("kv"))

    def astra() -> Emulated:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return emulate_astra(model, inputs, owners_T, 3, quantise=quantise, site="kv")

    exact = gradients_of(model, lambda: emulate_astra(model, inputs, owners_T, 3, quantise=quantise, site="kv"))
    found = gradients_of(model, astra)
    assert all(bool(gradient.isfinite().all()) for gradient in found)
    together, expected = (torch.cat([gradient.flatten() for gradient in all_of]) for all_of in (found, exact))
    assert float(F.cosine_similarity(together, expected, dim=0)) > ALIKE


def gradients_of(model: ModelAdapter, emulate: Callable[[], Emulated]) -> list[Tensor]:
    """Return the gradients of a sum over the logits with respect to every parameter that it depends on."""
    parameters = list(model.huggingface.parameters())  # type: ignore[attr-defined]  # every adapter has one
    for parameter in parameters:
        parameter.requires_grad_()
    try:
        total = logits_of(model, emulate()).square().sum()
        found = torch.autograd.grad(total, parameters, allow_unused=True)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
    assert sum(gradient is not None for gradient in found) > 10
    return [torch.zeros(1) if gradient is None else gradient for gradient in found]


@pytest.mark.parametrize("num_devices", [1, 2, 7])
def test_devices_are_emulated_in_one_attention_per_layer(
    model: ModelAdapter, num_devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    attended, quantised, plain = [0], [0], F.scaled_dot_product_attention

    def counted(*args: Tensor, **options: object) -> Tensor:
        attended[0] += 1
        return plain(*args, **options)  # type: ignore[arg-type]  # handed on as they came

    def quantise(layer: int, u_BTE: Tensor) -> Tensor:
        assert layer == quantised[0]
        quantised[0] += 1
        return u_BTE

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    owners_T = torch.arange(model.shape.num_content_tokens) % num_devices
    emulated = emulate_astra(model, inputs_for(model), owners_T, num_devices, quantise=quantise)
    assert attended == quantised == [model.shape.num_layers]
    assert emulated.class_BND.shape[1] == num_devices * model.shape.num_class_tokens


@pytest.mark.parametrize("family", ["vit", "bert", "gpt2"])
def test_emulation_makes_no_tensors_on_another_device(family: str) -> None:
    """`meta` tensors go together with none of the CPU's. Llama looks up its positions, which `meta` cannot."""
    cpu = lively(family)
    inputs = inputs_for(cpu, BATCH).to("meta")
    model = adapt(cpu.huggingface.to("meta"), cpu.shape.num_content_tokens)  # type: ignore[attr-defined]
    ranges = ranges_of(model, UNEVEN)
    owners_T = owners_of(ranges).to("meta")
    for emulated in (
        emulate_single(model, inputs),
        emulate_astra(model, inputs, owners_T, 3, quantise=unchanged),
        emulate_astra(model, inputs, owners_T, 3, quantise=unchanged, site="kv", class_tokens="single"),
        emulate_prism(model, inputs, ranges, PrismConfig(num_segments=2)),
    ):
        logits = logits_of(model, emulated)
        assert (logits.device.type, logits.shape) == ("meta", (BATCH, model.shape.num_outputs))


@pytest.mark.parametrize("family", ["vit", "bert"])
def test_averaging_class_tokens_reduces_their_error(family: str) -> None:
    """Each copy sees other tokens coarsely; over sixteen inputs their mean is nearer to the truth than any of them."""
    model = lively(family)
    inputs, owners_T = inputs_for(model, 16), owners_of(ranges_of(model, [1.0] * 4))
    quantise = quantise_by(fit_codebooks(model, inputs, GROUPS, CODEWORDS, seed=0))
    exact_BD = emulate_single(model, inputs).class_BND[:, 0]
    copies_BND = emulate_astra(model, inputs, owners_T, 4, quantise=quantise).class_BND
    alone = emulate_astra(model, inputs, owners_T, 4, quantise=quantise, class_tokens="single").class_BND[:, 0]

    def error(found_BD: Tensor) -> float:
        return float((found_BD - exact_BD).square().sum(dim=-1).mean())

    averaged = error(copies_BND.mean(dim=1))
    assert averaged < min(error(copies_BND[:, device]) for device in range(4))
    assert averaged < error(alone)


def test_owners_of_a_split_are_its_slices_in_order() -> None:
    assert owners_of(split(10, [1.0, 3.0, 1.0])).tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 2, 2]
