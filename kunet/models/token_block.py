"""The compact KUnet's token block: positions, attention, a KANLinear; and what takes their places to measure them.

Notebook: notebooks/09_kunet.ipynb.
"""

from jaxtyping import Float
from torch import Tensor, nn

from kunet.attention import ChannelAttention, WindowAttention
from kunet.kan import KANLinear


class TokenConv(nn.Sequential):
    """A 3x3 and a 1x1 convolution of the token map, ReLU between, with about as many parameters as attention has.

    (B, H, W, D) -> (B, H, W, D). A control: what attention adds must be more than what these do.
    """

    def __init__(self, dim: int):
        hidden = max(1, round((4 * dim**2 + 3 * dim) / (10 * dim + 1)))  # of 4 D^2 + 4 D
        super().__init__(nn.Conv2d(dim, hidden, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(hidden, dim, 1))

    def forward(self, x: Float[Tensor, "B H W D"]) -> Float[Tensor, "B H W D"]:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class TokenBlock(nn.Module):
    """Positions by a depthwise convolution, then pre-norm attention, then a pre-norm KANLinear, each added on.

    (B, D, H, W) -> (B, D, H, W). The LayerNorm before the KANLinear and its wide grid keep its
    inputs where splines live: about 1% of unit normals lie outside +-2.5. The other choices of ``attention``,
    ``projection``, ``basis`` and ``positions`` are for comparison; ``CompactKUnet`` explains them.
    Source: positions as in X. Chu et al., "Conditional Positional Encodings", arXiv 2102.10882.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        grid_size: int,
        degree: int,
        grid_range: tuple[float, float],
        attention: str = "window",
        projection: str = "kan",
        mlp_width: int = 256,
        basis: str = "bspline",
        positions: bool = True,
    ):
        super().__init__()
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim) if positions else None
        self.norm1 = nn.LayerNorm(dim) if attention != "none" else None
        self.norm2 = nn.LayerNorm(dim)
        self.attention = None
        if attention in ("window", "global"):  # a map smaller than its window is one window
            self.attention = WindowAttention(dim, heads, window if attention == "window" else 1 << 30)
        elif attention != "none":
            self.attention = ChannelAttention(dim, heads) if attention == "channel" else TokenConv(dim)
        if projection == "kan":
            self.kan = KANLinear(dim, dim, grid_size, degree, grid_range, basis=basis)
        elif projection == "linear":  # under the name that the weights have, whatever it is
            self.kan = nn.Linear(dim, dim)
        else:
            self.kan = nn.Sequential(nn.Linear(dim, mlp_width), nn.SiLU(), nn.Linear(mlp_width, dim))

    def forward(self, x: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        if self.position is not None:
            x = x + self.position(x)
        x = x.permute(0, 2, 3, 1)
        if self.attention is not None:
            x = x + self.attention(self.norm1(x))
        x = x + self.kan(self.norm2(x))
        return x.permute(0, 3, 1, 2)
