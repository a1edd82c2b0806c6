"""One small configuration of every network, for a processor core: what cost.py times and compare.py trains.

Chosen before any result, to have between some tens and some hundreds of thousands of parameters and to make a few
hundred training steps in a minute; not tuned, and none is its paper's network.
"""

NETWORKS: dict[str, tuple[str, dict]] = {
    "unet": ("unet", {"widths": [24, 48, 96]}),
    "unet_dense": ("unet", {"widths": [16, 32, 64], "separable": False}),
    "kunet": ("kunet", {"widths": [16, 24, 32, 48, 64], "hidden": 128, "heads": 4, "projections": [96, 64]}),
    "kunet_compact": ("kunet_compact", {"widths": [24, 48, 96], "depths": [1, 1, 2], "token_depth": 1}),
    "dncnn": ("dncnn", {"width": 32, "depth": 10}),
    "ffdnet": ("ffdnet", {"width": 64, "depth": 10, "residual": False}),  # as published
    "nafnet": ("nafnet", {"width": 16, "encoder": [1, 1, 2], "middle": 2, "decoder": [1, 1, 1]}),
    "kbnet_s": ("kbnet_s", {"width": 12, "encoder": [1, 1, 1], "middle": 1, "decoder": [1, 1, 1], "bases": 8}),
    "kbnet_l": (
        "kbnet_l",
        {"width": 8, "depths": [1, 1, 1], "heads": [1, 2, 4], "refinement": 0, "bases": 8},
    ),
    "kit": ("kit", {"width": 16, "levels": 2, "blocks": 1, "ratio": 4.0, "conv": True, "skip": "concat"}),
    "kmunet": ("kmunet", {"widths": [8, 16, 32], "convs": 1}),
    "ukan": ("ukan", {"dims": [32, 40, 64], "residual": False, "classes": None}),  # it has no full-size skip
}
"""name -> (model, arguments)."""
