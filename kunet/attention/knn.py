"""k-NN local attention: patches that look alike attend to each other, wherever in the image they lie.

Axes: maps are (B, H, W, D), patches (B, N, P, D) with N in row-major order and P = r^2 pixels each.
Source: H. Lee, H. Choi, K. Sohn, D. Min, "KNN Local Attention for Image Restoration" (KiT), CVPR 2022, supplement.
Notebook: notebooks/12_knn_attention.ipynb.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kunet.attention.tokens import SelfAttention

SCORES_AT_ONCE = 2**22
"""How many scores (16 MB of float32) are made at a time; without gradients no more than these are ever held."""


def to_patches(x: Float[Tensor, "B H W D"], size: int) -> Float[Tensor, "B N P D"]:
    """Non-overlapping patches of size x size pixels, row by row. Raises: ValueError when they do not cover the map."""
    if x.shape[1] % size or x.shape[2] % size:
        raise ValueError(f"to_patches: a map of {x.shape[1]} x {x.shape[2]}; both must be multiples of {size}: pad it")
    x = x.unflatten(2, (-1, size)).unflatten(1, (-1, size))  # B, rows, r, columns, r, D
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def from_patches(patches: Float[Tensor, "B N P D"], shape: tuple[int, int]) -> Float[Tensor, "B H W D"]:
    """The inverse of ``to_patches`` for a map of the given (H, W)."""
    size = round(patches.shape[2] ** 0.5)
    x = patches.unflatten(2, (size, size)).unflatten(1, (shape[0] // size, shape[1] // size))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def polytope_hash(x: Float[Tensor, "*N D"], rotations: Float[Tensor, "D R"]) -> Int[Tensor, "*N"]:
    """argmax([x R; -x R]): the nearest to x, by angle, of 2 R directions; a number in 0 .. 2 R - 1.

    The length of x does not matter, and the smaller the angle between two vectors the likelier they collide.
    Source: A. Andoni et al., "Practical and Optimal LSH for Angular Distance", arXiv 1509.02897, section 3 (their
    random rotation is a Gaussian matrix here, as in N. Kitaev et al., "Reformer", arXiv 2001.04451, section 2).
    """
    y = x @ rotations
    return torch.cat([y, -y], -1).argmax(-1)


def pair_attention(
    q: Float[Tensor, "*G Q d"], k: Float[Tensor, "*G K d"], v: Float[Tensor, "*G K d"], pixels: int
) -> Float[Tensor, "*G Q d"]:
    """Mean over patches j of softmax(q K_j^T / sqrt(d)) V_j: one softmax for each run of ``pixels`` keys."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    weights = scores.unflatten(-1, (-1, pixels)).softmax(-1).flatten(-2)
    return weights @ v * (pixels / k.shape[-2])


class KNNAttention(SelfAttention):
    """Each patch attends to every patch of its chunk: the k patches that stand together once all are sorted by hash.

    (B, H, W, D) -> (B, H, W, D), for sides that are multiples of ``patch``. With hashes h of the mean pixels m of the
    patches, chunks are k neighbours in the stable order of h; for a query patch q and the patches j of its chunk

        h = argmax([m R; -m R]),    y_q = (1 / k) sum_j softmax(Q_q K_j^T / sqrt(d)) V_j.

    No score is computed across chunks, so the cost is linear in N (but for sorting N integers). The last chunk reaches
    back into the one before it where k does not divide N, and holds all N where N < k. k = 1 is attention inside
    windows of patch x patch. There is no encoding of position. No gradient reaches the choice of neighbours.

    Args:
        dim, heads: channels and heads, as SelfAttention's.
        k: patches in a chunk, the query's own among them.
        patch: side r of a patch in pixels.
        buckets: different hashes, an even number (R has half as many columns). 0 sorts nothing: a chunk is then k
            patches in a row, the control of the notebook.
        centre: take the image's mean patch from m before hashing. Features of an image mostly point the same way, so
            that without this few of the buckets are used (the notebook counts them).
        seed: of R, a buffer that weights files keep.
    Raises: ValueError for numbers outside these, or heads that do not divide dim.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        k: int = 4,
        patch: int = 4,
        buckets: int = 64,
        centre: bool = False,
        seed: int = 0,
    ):
        super().__init__(dim, heads)
        if min(k, patch) < 1 or buckets < 0 or buckets % 2:
            raise ValueError(
                f"KNNAttention: k {k}, patch {patch}, buckets {buckets}; k and patch are 1 or more, buckets even or 0"
            )
        self.k, self.patch, self.centre = k, patch, centre
        rotations = torch.randn(dim, buckets // 2, generator=torch.Generator().manual_seed(seed), device="cpu")
        self.register_buffer("rotations", rotations.to(self.out.weight.device))

    def order(self, patches: Float[Tensor, "B N P D"]) -> Int[Tensor, "B N"]:
        """The patches' numbers in the order of their hashes; equal hashes stay in row-major order."""
        if not self.rotations.shape[1]:
            return torch.arange(patches.shape[1], device=patches.device).expand(len(patches), -1)
        m = patches.detach().mean(2)
        m = m - m.mean(1, keepdim=True) if self.centre else m
        return polytope_hash(m, self.rotations).argsort(dim=1, stable=True)

    def forward(self, x: Float[Tensor, "B H W D"]) -> Float[Tensor, "B H W D"]:
        patches = to_patches(x, self.patch)
        batch, count, pixels, dim = patches.shape
        near = min(self.k, count)
        chunks = -(-count // near)
        order, place = self.order(patches), torch.arange(count, device=x.device)
        starts = (place[:chunks] * near).clamp(max=count - near)
        members = (starts[:, None] + place[:near]).flatten()  # places in the order, chunk after chunk
        groups = _take(patches, order[:, members]).reshape(batch * chunks, near * pixels, dim)
        limit = max(1, SCORES_AT_ONCE // (self.heads * (near * pixels) ** 2))
        y = torch.cat([self._attend(part, pixels) for part in groups.split(limit)])
        # The last chunk gives only what the one before it has not: skip the places that both hold.
        place = place + (place >= (chunks - 1) * near) * (chunks * near - count)
        y = _take(y.reshape(batch, chunks * near, pixels, dim), place[order.argsort(1)])
        return self.out(from_patches(y, (x.shape[1], x.shape[2])))

    def _attend(self, groups: Float[Tensor, "G K D"], pixels: int) -> Float[Tensor, "G K D"]:
        q, k, v = self.qkv(groups).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return pair_attention(q, k, v, pixels).transpose(1, 2).flatten(2)


def _take(x: Float[Tensor, "B N P D"], index: Int[Tensor, "B M"]) -> Float[Tensor, "B M P D"]:
    """Each image's patches in another order; whole patches are copied, which gather would do number by number."""
    rows = index + x.shape[1] * torch.arange(len(x), device=x.device)[:, None]
    return x.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, index.shape)
