"""Names and shapes of a model's tensors, read from the headers of its files; needs no torch."""

import json
from pathlib import Path

# A safetensors file begins with the length of its header, then the header as JSON.
_LENGTH_BYTES = 8
_ABOUT_FILE = "__metadata__"

Shapes = dict[str, tuple[int, ...]]


def shapes_of(model_path: Path) -> Shapes:
    """Those of all safetensors files in a model's directory."""
    shapes: Shapes = {}
    for file in sorted(model_path.glob("*.safetensors")):
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
            header = json.loads(opened.read(length))
        header.pop(_ABOUT_FILE, None)
        shapes |= {name: tuple(about["shape"]) for name, about in header.items()}
    return shapes
