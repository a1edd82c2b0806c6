"""Attention: over tokens of a map (``tokens``), by bases of kernels (``kernel_basis``), among near patches (``knn``)."""

from kunet.attention.tokens import PatchTokens, SelfAttention, WindowAttention, to_map, to_tokens

__all__ = ["PatchTokens", "SelfAttention", "WindowAttention", "to_map", "to_tokens"]
