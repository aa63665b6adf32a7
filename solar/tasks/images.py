"""Image rows to pixel arrays: three channels, one size, uint8; means and scales are the model's.

A row's image may be an array (H, W) or (H, W, 3) uint8, a Pillow image, a path, or the bytes of a
file. Repeats are told by the decoded pixels, before resizing.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from solar.errors import SolarError
from solar.tasks.task import SPLITS, Candidate, Request, Source, draw_examples
from solar.tasks.text import Arrays, class_index, class_names, group_key

# What Pillow raises of bytes that are none, or that claim to be millions of pixels.
_NO_IMAGE = (
    TypeError, ValueError, SyntaxError, AttributeError, OSError, Image.DecompressionBombError
)  # fmt: skip


def in_colour(image: Image.Image) -> Image.Image:
    """RGB of 8 bits. Pillow clips grey values of 16 bits at 255; here they keep their upper 8 (of
    whole numbers in 32 bits only where one is above 255)."""
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise ValueError("its grey values take more than 16 bits")
        small = image.mode == "I" and grey.max() <= 0xFF
        image = Image.fromarray((grey if small else grey >> 8).astype(np.uint8))
    return image.convert("RGB")


def read_image(value: Any, name: str) -> Image.Image:
    """Decode one cell of an image column to RGB. Raises SolarError for what is no image."""
    try:
        if isinstance(value, np.ndarray):
            return in_colour(Image.fromarray(value))
        if isinstance(value, Image.Image):
            return in_colour(value)
        if isinstance(value, Mapping):  # the undecoded form of a `datasets` image
            value = value.get("bytes") or value.get("path")
        source = io.BytesIO(value) if isinstance(value, bytes) else Path(value)
        with Image.open(source) as opened:
            return in_colour(opened)
    except _NO_IMAGE as error:
        shown = value if isinstance(value, (str, Path)) else type(value).__name__
        raise SolarError(f"task {name}: {shown} is not a readable image ({error})") from error


def image_classification(
    config: Mapping[str, Any], source: Source, request: Request, size: int
) -> tuple[Arrays, tuple[str, ...], dict[str, Any]]:
    """Splits with pixels (N, size, size, 3) uint8 and label; class names; facts for the record.

    Resizing is Pillow's bilinear, straight to the square, as ViT's published preprocessing does.
    """
    name = config["name"]
    classes = class_names(config, source)
    label, group = class_index(classes, source, "label", name), group_key(config)

    def cell(row: Mapping[str, Any]) -> Any:
        if "image" not in row:
            raise SolarError(
                f"task {name}: no column 'image' in the data, it has {', '.join(map(str, row))}: "
                "set columns.image"
            )
        return row["image"]

    def prepare(row: Mapping[str, Any]) -> Candidate:
        pixels = np.asarray(read_image(cell(row), name))
        key = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
        key.update(pixels.tobytes())
        return Candidate(row, (key.digest(),), (key.digest(), *group(row)))

    dealt, dropped = draw_examples(source, request, prepare, label, classes)
    splits: Arrays = {}
    for split in SPLITS:
        pixels = np.zeros((len(dealt[split]), size, size, 3), np.uint8)
        for index, row in enumerate(dealt[split]):
            picture = read_image(row["image"], name)
            pixels[index] = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
        numbers = np.array([label(row) for row in dealt[split]], np.int32)
        splits[split] = {"pixels": pixels, "label": numbers}
    return splits, classes, {"repeats_dropped": dropped}
