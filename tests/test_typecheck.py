"""The shapes in the signatures are checked while testing, so a test that passes has passed them too."""

import jaxtyping
import pytest
import torch

from kunet import metrics
from kunet.attention import to_tokens


def test_wrong_shapes_are_caught():
    with pytest.raises(jaxtyping.TypeCheckError):
        to_tokens(torch.zeros(3, 4, 5))
    with pytest.raises(jaxtyping.TypeCheckError):
        metrics.mse(torch.zeros(1, 3, 4, 5), torch.zeros(1, 3, 4, 6))
