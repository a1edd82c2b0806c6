"""Tiles cover the image, blend to one, and do not show."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kunet.tiling import spans, tile_count, tiled


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(4, 40), st.integers(0, 2))
def test_a_pointwise_function_is_reproduced(height, width, tile, part):
    overlap = [0, 1, tile // 2][part]
    x = torch.randn(1, 3, height, width)
    calls = []
    y = tiled(lambda p: 2 * p + 1, x, tile, overlap, lambda: calls.append(1))
    assert torch.allclose(y, 2 * x + 1, atol=1e-5)
    assert len(calls) == tile_count(height, width, tile, overlap)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.integers(8, 64), st.integers(0, 4))
def test_spans(length, tile, overlap):
    found = spans(length, tile, overlap)
    assert found[0][0] == 0 and found[-1][1] == length
    assert all(end - start <= tile for start, end in found)
    assert all(b[0] == a[1] - overlap for a, b in pairwise(found))


def test_a_filter_with_a_small_footprint_is_reproduced():
    """Far from the seams a tile sees what the whole image sees; with a wide overlap the seams themselves nearly do."""
    x = torch.rand(1, 1, 60, 90)
    blur = lambda p: torch.nn.functional.avg_pool2d(torch.nn.functional.pad(p, (1, 1, 1, 1), mode="reflect"), 3, 1)
    difference = (tiled(blur, x, 32, 8) - blur(x)).abs()
    assert float(difference.max()) < 0.1  # half the first ramp step's weight, at the edge pixels of a tile
    assert float((difference > 1e-6).float().mean()) < 0.15


def test_messages():
    with pytest.raises(ValueError, match="half a tile"):
        tiled(lambda p: p, torch.zeros(1, 1, 4, 4), 8, 5)
