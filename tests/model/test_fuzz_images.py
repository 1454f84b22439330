"""Whatever is given as an image gives views of it or one ValueError that names it: arrays, files, EXIF, text by the
thousand. `FUZZ_EXAMPLES=10000` looks longer, and elsewhere each time."""

import os
from io import BytesIO

import numpy as np
import pytest
import tiny
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pixels import SIDE, encoded, levels, processor, with_right_checksums

from omnifusion_hf.model.image_processing_omnifusion import CHANNELS, OVERSHOOT, UPRIGHT, load_image


pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow and numpy warn of what is damaged
LONG = os.environ.get("FUZZ_EXAMPLES")
MOST_PIXELS = 2**16
PHOTO = tiny.image(size=(19, 23))


def fuzz(share: int = 1):
    """Settings: a share of the examples; the same ones each time, unless there is time for more."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    options = {"derandomize": not LONG, "database": None, "deadline": None, "suppress_health_check": checks}
    return settings(max_examples=int(LONG or 150) * share, **options)


def views_or_reason(image, **options) -> np.ndarray | str:
    """Views that hold what views hold, or why there are none. Anything else is what this file looks for."""
    try:
        pixels = processor(max_image_pixels=MOST_PIXELS)(image, return_tensors="np", **options).pixel_values
    except ValueError as error:
        assert str(error)
        return str(error)
    assert pixels.shape[1:] == (3, SIDE, SIDE) and pixels.dtype == np.float32
    assert -1.8 < pixels.min() <= pixels.max() < 2.2  # black and white, normalised: NaN fails
    return pixels


SIDES = st.sampled_from([0, 1, 2, 3, 4, 5, 8])
DTYPES = st.one_of(
    arrays.integer_dtypes(), arrays.unsigned_integer_dtypes(), arrays.floating_dtypes(), arrays.boolean_dtypes(),
    arrays.complex_number_dtypes(), arrays.unicode_string_dtypes(), arrays.datetime64_dtypes(),
)  # fmt: skip
RANGES = st.sampled_from([(0, 1), (0, 255), (-0.1, 1.1), (-9, 260), (0, 65535), (-1e9, 1e9)])


@st.composite
def any_arrays(draw) -> np.ndarray:
    """Arrays of any dtype, shape and values; mostly numbers near a range that images have."""
    dtype, shape = draw(DTYPES), draw(st.lists(SIDES, max_size=4))
    if dtype.kind in "iuf" and draw(st.booleans()):
        low, high = draw(RANGES)
        if dtype.kind in "iu":
            low, high = max(low, np.iinfo(dtype).min), min(high, np.iinfo(dtype).max)
        values = np.random.default_rng(draw(st.integers(0, 99))).uniform(low, high, shape)
        return np.asarray(values).astype(dtype)
    return draw(arrays.arrays(dtype, tuple(shape)))


def can_be_an_image(array: np.ndarray) -> bool:
    """The rule of the documentation, told again."""
    if array.ndim not in (2, 3) or not array.size or array.dtype.kind not in "biuf":
        return False
    if array.ndim == 3 and not {array.shape[0], array.shape[-1]} & set(CHANNELS):
        return False
    low, high = float(array.min()), float(array.max())
    if array.dtype.kind in "biu":
        return low >= 0 and high <= 255
    top = 1 if high < 2 else 255
    return low >= -OVERSHOOT * max(high, 1) and high <= top * (1 + OVERSHOOT)


@fuzz(2)
@given(any_arrays(), st.booleans())
@example(np.full((8, 8, 3), np.nan), False)
@example(np.ones((8, 8, 3), np.int8), True)
def test_an_array_is_an_image_or_is_refused_by_the_documented_rule(array, do_rescale):
    pixels = views_or_reason([array], do_rescale=do_rescale)
    if array.ndim != 4:
        assert isinstance(pixels, str) != can_be_an_image(array), pixels
    try:
        tensor = torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))
    except TypeError:  # torch has not this dtype
        return
    assert isinstance(views_or_reason([tensor], do_rescale=do_rescale), str) == isinstance(pixels, str)


@st.composite
def eight_bit(draw) -> np.ndarray:
    """(H, W, C) of uint8; some hold nothing brighter than 1."""
    shape = (draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.sampled_from(CHANNELS)))
    brightest = draw(st.sampled_from([1, 2, 3, 127, 255]))
    return np.random.default_rng(draw(st.integers(0, 99))).integers(0, brightest + 1, shape, dtype=np.uint8)


WIDER = "int16 uint16 int32 uint32 int64 uint64 float16 float32 float64 0..1".split()


@fuzz()
@given(eight_bit(), st.sampled_from(WIDER), st.data())
def test_an_image_means_the_same_in_every_dtype_and_layout(array, dtype, data):
    same = array / 255 if dtype == "0..1" else array.astype(dtype)
    if dtype.startswith("float") and array.max() < 2:
        same[0, 0, 0] = array[0, 0, 0] = 2  # else it would be read as 0..1
    expected = levels(Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array))
    ways = [
        lambda: levels(same[..., 0] if same.shape[-1] == 1 else same),
        lambda: levels(same),
        lambda: levels(torch.from_numpy(same).permute(2, 0, 1)),
        lambda: levels(np.moveaxis(same, -1, 0), input_data_format="channels_first"),
        lambda: levels(torch.from_numpy(same), input_data_format="channels_last"),
    ]
    np.testing.assert_array_equal(data.draw(st.sampled_from(ways))(), expected)
    np.testing.assert_array_equal(views_or_reason(same, do_rescale=False), views_or_reason(array))


EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010E] = 6, "described"
SEEDS = {
    "PNG": encoded(PHOTO, "PNG", exif=EXIF),
    "PNG, 16 bit": encoded(Image.fromarray(np.asarray(PHOTO.convert("L")).astype(np.uint16) * 257), "PNG"),
    "PNG, transparent": encoded(PHOTO.quantize(8), "PNG", transparency=3),
    "JPEG": encoded(PHOTO, "JPEG", exif=EXIF),
    "JPEG, progressive CMYK": encoded(PHOTO.convert("CMYK"), "JPEG", progressive=True),
    "MPO": encoded(PHOTO, "MPO", save_all=True, append_images=[PHOTO]),
    "WEBP": encoded(PHOTO, "WEBP", exif=EXIF),
    "WEBP, animated": encoded(PHOTO, "WEBP", lossless=True, save_all=True, append_images=[PHOTO.rotate(90)]),
    "GIF": encoded(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(90)]),
    "BMP, palette": encoded(PHOTO.quantize(8), "BMP"),
    "TIFF": encoded(PHOTO, "TIFF", exif=EXIF),
    "TIFF, LZW": encoded(PHOTO, "TIFF", compression="tiff_lzw"),
}
SEEDS |= {kind: encoded(PHOTO, kind) for kind in ("BMP", "ICO", "QOI", "DDS", "TGA")}
NUMBERS = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 255, 65535, 2**24, 2**31 - 1, 2**32 - 1]))
PLACES = st.one_of(st.integers(0, 60), st.integers(0, 10**6))  # headers break in more ways than pixels
# (place, how many bytes go, what comes instead): one byte, a number, the rest of the file, anything.
EDITS = st.one_of(
    st.tuples(PLACES, st.just(1), st.binary(min_size=1, max_size=1)),
    st.tuples(PLACES, st.just(4), NUMBERS.map(lambda number: number.to_bytes(4, "big"))),
    st.tuples(PLACES, st.just(10**6), st.just(b"")),
    st.tuples(PLACES, st.integers(0, 40), st.binary(max_size=40)),
)


def edited(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, gone, new in edits:
        place %= len(data) + 1
        data = data[:place] + new + data[place + gone :]
    return data


@fuzz(4)
@given(st.sampled_from(list(SEEDS)), st.lists(EDITS, max_size=4), st.booleans(), st.booleans())
def test_a_damaged_file_is_an_image_or_is_refused_by_its_name(seed, edits, repaired, is_named):
    data = edited(SEEDS[seed], edits)
    data = with_right_checksums(data) if repaired and data[:4] == b"\x89PNG" else data
    found = views_or_reason({"bytes": data, "path": "holiday.png"} if is_named else data)
    if isinstance(found, str):
        assert edits and found.startswith("holiday.png" if is_named else f"{len(data)} bytes")


@fuzz()
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.lists(EDITS, max_size=4), st.binary(max_size=60), st.booleans())
def test_an_image_is_taken_whatever_its_exif_holds(kind, edits, random, is_random):
    """It then stands as its file holds it, or in one of the seven other ways that an orientation may ask for."""
    exif = b"Exif\0\0" + (random if is_random else edited(EXIF.tobytes().removeprefix(b"Exif\0\0"), edits))
    options = {"lossless": True} if kind == "WEBP" else {}
    shown = load_image(encoded(PHOTO, kind, exif=exif, **options), MOST_PIXELS)
    plain = Image.open(BytesIO(encoded(PHOTO, kind, **options))).convert("RGB")
    ways = [plain, *(plain.transpose(turn) for turn in UPRIGHT.values())]
    assert any(shown.size == way.size and shown.tobytes() == way.tobytes() for way in ways)


TEXTS = st.one_of(st.text(), st.text("AZaz09+/=\n "), st.builds("data:image/png;base64,{}".format, st.text()))
SOURCES = st.recursive(
    st.one_of(TEXTS, st.builds("file://{}".format, st.text()), st.binary(), st.none(), st.integers(), st.floats()),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"bytes": inner, "path": inner}),
        st.dictionaries(st.sampled_from(["bytes", "path", "url"]), inner),
        st.builds(bytearray, st.binary()),
        st.builds(BytesIO, st.binary()),
        st.lists(inner, min_size=1, max_size=2),
    ),
    max_leaves=4,
)


@fuzz()
@given(SOURCES)
def test_what_is_neither_image_nor_file_is_refused(source):
    assert isinstance(views_or_reason(source), str)


def test_the_search_finds_what_pillow_raises():
    """Control: without the one place that turns every error into one, the same files raise others."""
    raised = set()

    @settings(fuzz(), derandomize=True, max_examples=500)
    @given(st.sampled_from(list(SEEDS)), st.lists(EDITS, max_size=4))
    def look(seed, edits):
        try:
            load_image(Image.open(BytesIO(edited(SEEDS[seed], edits))), MOST_PIXELS)
        except Exception as error:
            raised.add(type(error.__cause__ or error).__name__)

    look()
    assert len(raised - {"ValueError"}) >= 2, raised
