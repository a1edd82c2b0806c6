"""The weights that ship with the package: safetensors and a JSON card of how they were made and what they score."""

from importlib.resources import files
from pathlib import Path

DEFAULT = "kunet_tiny"


def released() -> list[str]:
    """Names of the released weights."""
    return sorted(
        p.name.removesuffix(".safetensors") for p in files(__name__).iterdir() if p.name.endswith(".safetensors")
    )


def find(name: str) -> Path:
    """The file of released weights by name; any other name is taken as a path."""
    return Path(str(files(__name__).joinpath(f"{name}.safetensors"))) if name in released() else Path(name)
