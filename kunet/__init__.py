"""KUnet: Kolmogorov-Arnold networks for real images, from B-splines to a photo denoiser.

Importing this package is cheap and has no side effects; import the room you need, for example
``from kunet.kan import KANLinear`` or ``from kunet import denoise``.
"""

__version__ = "0.1.0"
