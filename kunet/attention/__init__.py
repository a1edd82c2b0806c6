"""Attention: among tokens (``tokens``), by bases of kernels (``kernel_basis``), among near patches (``knn``)."""

from kunet.attention.kernel_basis import KernelBasis, kernel_basis_attention
from kunet.attention.knn import KNNAttention
from kunet.attention.tokens import ChannelAttention, PatchTokens, SelfAttention, WindowAttention, to_map, to_tokens

__all__ = [
    "ChannelAttention",
    "KNNAttention",
    "KernelBasis",
    "PatchTokens",
    "SelfAttention",
    "WindowAttention",
    "kernel_basis_attention",
    "to_map",
    "to_tokens",
]
