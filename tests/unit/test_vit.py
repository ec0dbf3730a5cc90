"""The adapter equals Hugging Face's own forward; seeds repeat; checkpoints load or are refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from astra.config import ModelConfig
from astra.errors import ConfigError
from astra.models import load_model
from astra.models.vit import ViTAdapter, build_vit

EQUAL = 1e-5  # the same operations on the same weights, in another order
TINY = ModelConfig(size="tiny", image_size=80, num_labels=10)


def lively(config: ModelConfig) -> ViTAdapter:
    """Give every weight, biases and norms too, a value that shows when it is left out."""
    adapter = ViTAdapter(build_vit(config))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapter.huggingface.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapter


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_vit_forward_equals_hugging_face(size: str) -> None:
    adapter = lively(ModelConfig(size=size, image_size=96, num_labels=10))
    pixels = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        expected = adapter.huggingface(pixels).logits
        torch.testing.assert_close(
            adapter.forward(pixels), expected, rtol=EQUAL, atol=EQUAL * float(expected.abs().max())
        )


def test_vit_shape_counts_tokens_of_the_patch_grid() -> None:
    shape = load_model(TINY).shape
    assert (shape.num_content_tokens, shape.num_class_tokens, shape.num_outputs) == (25, 1, 10)
    assert shape.num_heads * shape.head_width == shape.width


@pytest.mark.parametrize("tokens", [range(25), range(7, 12), range(3, 4), range(5, 10), range(24, 25)])
def test_embed_content_of_a_band_equals_that_of_the_whole_image(tokens: range) -> None:
    adapter = lively(TINY)
    pixels = torch.randn(2, 3, 80, 80)
    rows = adapter.input_rows(tokens)
    band = adapter.embed_content(pixels[:, :, rows.start : rows.stop], tokens, rows.start)
    whole = adapter.embed_content(pixels, range(25))
    torch.testing.assert_close(band, whole[:, tokens.start : tokens.stop], rtol=EQUAL, atol=EQUAL)


def test_key_value_weight_and_bias_are_those_of_key_value() -> None:
    block = lively(TINY).blocks[0]
    u_BTD = torch.randn(1, 3, 64)
    k_BHTd, v_BHTd = block.key_value(u_BTD)
    both = torch.nn.functional.linear(u_BTD, block.key_value_weight, block.key_value_bias)
    expected = torch.cat((k_BHTd.transpose(1, 2).flatten(2), v_BHTd.transpose(1, 2).flatten(2)), dim=2)
    torch.testing.assert_close(both, expected, rtol=EQUAL, atol=EQUAL)


def test_seeded_weights_repeat_and_differ_between_seeds() -> None:
    first, again, other = (load_model(TINY.model_copy(update={"seed": seed})) for seed in (1, 1, 2))
    pixels = torch.randn(1, 3, 80, 80)
    assert torch.equal(first.forward(pixels), again.forward(pixels))
    assert not torch.equal(first.forward(pixels), other.forward(pixels))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    lively(TINY).huggingface.save_pretrained(tmp_path)
    return tmp_path


def from_checkpoint(folder: Path, **changes: int) -> ViTAdapter:
    return ViTAdapter(build_vit(TINY.model_copy(update={"checkpoint": str(folder), **changes})))


def test_checkpoint_gives_the_model_that_was_saved(checkpoint: Path) -> None:
    pixels = torch.randn(1, 3, 80, 80)
    assert torch.equal(from_checkpoint(checkpoint).forward(pixels), lively(TINY).forward(pixels))


def test_checkpoint_of_another_resolution_interpolates_like_hugging_face(checkpoint: Path) -> None:
    pixels = torch.randn(1, 3, 112, 112)
    with torch.inference_mode():
        expected = lively(TINY).huggingface(pixels, interpolate_pos_encoding=True).logits
        adapter = from_checkpoint(checkpoint, image_size=112)
        scale = float(expected.abs().max())
        torch.testing.assert_close(adapter.forward(pixels), expected, rtol=EQUAL, atol=EQUAL * scale)
        torch.testing.assert_close(adapter.huggingface(pixels).logits, expected, rtol=EQUAL, atol=EQUAL * scale)


def test_checkpoint_without_files_names_each(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        from_checkpoint(tmp_path)
    assert [("config.json" in fault, "model.safetensors" in fault) for fault in caught.value.faults] == [
        (True, False),
        (False, True),
    ]


def test_checkpoint_that_does_not_fit_reports_every_fault(checkpoint: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        from_checkpoint(checkpoint, num_labels=7, image_size=90)
    assert "num_labels must be that of the checkpoint, 10, got 7" in str(caught.value)
    assert "model.image_size must be a multiple of the patch size 16, got 90" in str(caught.value)


def test_checkpoint_with_truncated_weights_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="must be a readable ViTForImageClassification"):
        from_checkpoint(checkpoint)


def test_checkpoint_that_lacks_a_weight_is_refused_and_not_filled_in(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("classifier.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"must hold every weight, got none for \['classifier.weight'\]"):
        from_checkpoint(checkpoint)


def test_checkpoint_of_another_model_type_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "bert"}))
    with pytest.raises(ConfigError, match="vit"):
        from_checkpoint(checkpoint)
