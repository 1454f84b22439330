"""Image processors of 32 pixels, the 8-bit levels they give, and images and files to give them."""

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image

from omnifusion_hf import OmniFusionImageProcessor


SIDE = 32
MEAN = [0.48145466, 0.4578275, 0.40821073]
BACKGROUND = tuple(round(255 * mean) for mean in MEAN)


def processor(**options) -> OmniFusionImageProcessor:
    return OmniFusionImageProcessor(size={"height": SIDE, "width": SIDE}, **options)


def levels(images, **options) -> np.ndarray:
    """Views as the 8-bit levels that normalisation starts from, (ΣV, 3, S, S)."""
    return processor(do_rescale=False, do_normalize=False, **options)(images, return_tensors="np").pixel_values


def noise(count: int, seed: int = 0) -> list[Image.Image]:
    """Images of random levels, 1 to 300 pixels a side: any other resampling would differ somewhere."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(0, np.log(300), (count, 2))).astype(int)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def channels_first(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def stored_turned(upright: Image.Image, orientation: int, kind: str = "PNG") -> bytes:
    """A file whose EXIF orientation makes viewers show `upright`."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(stored, kind, exif=exif)


def with_right_checksums(png: bytes) -> bytes:
    """A PNG whose decoder gets at the damage."""
    fixed, place = png[:8], 8
    while place + 12 <= len(png):
        end = place + 8 + int.from_bytes(png[place : place + 4], "big")
        fixed += png[place:end] + zlib.crc32(png[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return fixed


def declared_png(side: int) -> bytes:
    """The header declares side x side pixels, all but one of which are missing."""
    data = encoded(Image.new("1", (1, 1)), "PNG")
    return with_right_checksums(data[:16] + struct.pack(">II", side, side) + data[24:])
