"""A mean with the logarithm of its count equals repeating it; slices are cut as asked or not at all."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from astra.attention import attend
from astra.partial_attention import KeyValues, attend_part, merge_parts
from astra.segments import count_segments, cut_segments, log_counts, segment_means

ROUNDING = 1e-5  # fp32 sums in another order


@settings(max_examples=40, deadline=None)
@given(num_rows=st.integers(1, 40), data=st.data(), seed=st.integers(0, 2**31), causal=st.booleans())
def test_log_counts_equal_repeating_each_mean(num_rows: int, data: st.DataObject, seed: int, causal: bool) -> None:
    num_segments = data.draw(st.integers(1, num_rows))
    num_own = data.draw(st.integers(1, 6))
    segments = cut_segments(num_rows, num_segments)
    generator = torch.Generator().manual_seed(seed)
    q, k_own, v_own = torch.randn(3, 1, 2, num_own, 4, generator=generator).unbind()
    k_mean, v_mean = torch.randn(2, 1, 2, num_segments, 4, generator=generator).unbind()
    counts = torch.tensor([len(segment) for segment in segments])
    k_each, v_each = (mean.repeat_interleave(counts, dim=2) for mean in (k_mean, v_mean))
    repeated = attend(q, torch.cat((k_each, k_own), 2), torch.cat((v_each, v_own), 2), causal=causal)
    own = attend_part(q, KeyValues(k_own, v_own), causal=causal)
    counted = attend_part(q, KeyValues(k_mean, v_mean, log_counts(segments)))
    torch.testing.assert_close(merge_parts([own, counted]), repeated, rtol=ROUNDING, atol=ROUNDING)


@given(num_rows=st.integers(1, 60), data=st.data())
def test_segments_cover_the_rows_and_differ_by_one(num_rows: int, data: st.DataObject) -> None:
    segments = cut_segments(num_rows, data.draw(st.integers(1, num_rows)))
    assert [row for segment in segments for row in segment] == list(range(num_rows))
    lengths = [len(segment) for segment in segments]
    assert max(lengths) - min(lengths) <= 1


def test_segment_means_are_means() -> None:
    x_BTD = torch.randn(2, 7, 3)
    segments = cut_segments(7, 3)
    expected = torch.stack([x_BTD[:, segment.start : segment.stop].mean(dim=1) for segment in segments], dim=1)
    torch.testing.assert_close(segment_means(x_BTD, segments), expected, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize(
    ("rows", "ratio", "segments"), [(128, 128.0, 1), (256, 25.6, 10), (129, 128.0, 1), (7, 2.0, 3)]
)
def test_count_segments_never_sends_more_than_the_ratio_allows(rows: int, ratio: float, segments: int) -> None:
    assert count_segments(rows, None, ratio) == segments


def test_count_segments_refuses_what_a_slice_cannot_give() -> None:
    with pytest.raises(ValueError, match="num_segments must be at most the 5 tokens of the smallest slice, got 6"):
        count_segments(5, 6, None)
    with pytest.raises(ValueError, match="compression_ratio must be at most the 5 tokens of the smallest slice, got 8"):
        count_segments(5, None, 8.0)
