"""The image processor: exact pixels, every container of an image, huge and broken files, what is saved."""

import base64
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO, StringIO
from tempfile import SpooledTemporaryFile
from time import sleep

import numpy as np
import pytest
import tiny
import torch
from conversations import turn
from PIL import Image, ImageFile
from pixels import BACKGROUND, SIDE, channels_first, declared_png, encoded, levels, noise, processor, stored_turned
from transformers import AutoImageProcessor, CLIPImageProcessor, CLIPImageProcessorPil, SiglipImageProcessorPil

from omnifusion_hf import OmniFusionImageProcessor
from omnifusion_hf.evaluation.questions import Question, opened
from omnifusion_hf.evaluation.robustness.errors import thumbnail
from omnifusion_hf.model import image_processing_omnifusion, views_omnifusion
from omnifusion_hf.model.image_processing_omnifusion import images_per_prompt, load_image
from omnifusion_hf.model.views_omnifusion import best_canvas, fit_inside
from omnifusion_hf.serving import conversation
from omnifusion_hf.training.conversations import SampleReader, open_images
from omnifusion_hf.visualize import draw_file


PHOTO = tiny.image()
EIGHT_BIT = np.asarray(PHOTO)
UNIT = EIGHT_BIT / 255


def on_canvas(image: Image.Image, height: int, width: int) -> Image.Image:
    """The image resized, aspect kept, and centred on a padded canvas: the plain way to a grid."""
    resized = fit_inside((image.height, image.width), (height, width))
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    corner = ((width - resized[1]) // 2, (height - resized[0]) // 2)
    canvas.paste(image.resize(resized[::-1], Image.Resampling.BICUBIC), corner)
    return canvas


def pixels(image, **options) -> np.ndarray:
    return processor(**options)(image, return_tensors="np").pixel_values


SIZE, RAW = {"height": SIDE, "width": SIDE}, {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
CLIP = {"size": {"shortest_edge": SIDE}, "crop_size": SIZE}
PUBLISHED = {"crop": CLIPImageProcessorPil(**CLIP), "squash": SiglipImageProcessorPil(size=SIZE)}


@pytest.mark.parametrize("fit", PUBLISHED)
def test_pixels_are_those_of_the_encoders_own_processor(fit):
    published = PUBLISHED[fit]
    means = {"image_mean": published.image_mean, "image_std": published.image_std}
    for image in noise(300):
        np.testing.assert_array_equal(levels(image, image_fit=fit), published(image, **RAW).pixel_values)
        expected = published(image, return_tensors="np").pixel_values
        np.testing.assert_allclose(pixels(image, image_fit=fit, **means), expected, atol=1e-5)
    assert (levels(image) != levels(image, resample=Image.Resampling.BILINEAR)).any()  # control


def test_the_torchvision_backend_equals_that_of_the_encoders_processor_within_a_stated_bound_of_pillow():
    """At most 2 of 255 levels, 0.05 in the mean: what a checkpoint trained with the other backend sees change."""
    pytest.importorskip("torchvision", reason="torchvision, the other backend, is not installed")
    images = [tiny.image(seed, (40 + 9 * seed, 150 - 11 * seed)) for seed in range(10)]
    other = levels(images, resize_backend="torchvision")
    np.testing.assert_array_equal(other, CLIPImageProcessor(**CLIP)(images, **RAW).pixel_values)
    for options in ({}, {"view_strategy": "grid"}, {"view_strategy": "grid", "resample": Image.Resampling.BILINEAR}):
        difference = np.abs(levels(images, **options) - levels(images, resize_backend="torchvision", **options))
        assert 0 < difference.max() <= 2 and difference.mean() < 0.05
    assert np.abs(levels(images) - levels(images, resample=Image.Resampling.BILINEAR)).max() > 2  # control


@pytest.mark.parametrize("mode, size", [("L", (40, 30)), ("RGB", (1, 90)), ("RGB", (300, 1)), ("CMYK", (40, 30))])
def test_the_torchvision_backend_takes_images_of_any_shape_and_mode(mode, size):
    image = tiny.image(0, size).convert(mode)
    options = {"image_fit": "squash", "do_convert_rgb": mode != "CMYK"}
    if mode == "CMYK":
        options |= {"image_mean": [0.5] * 4, "image_std": [0.5] * 4}
    np.testing.assert_allclose(
        levels(image, **options), levels(image, resize_backend="torchvision", **options), atol=2
    )


def test_pad_and_grid_tiles_equal_pillow_in_every_pixel():
    grid = processor(view_strategy="grid")
    for image in noise(150):
        np.testing.assert_array_equal(levels(image, image_fit="pad")[0], channels_first(on_canvas(image, SIDE, SIDE)))
        rows, columns = best_canvas((image.height, image.width), grid.grid_canvases, SIDE)
        canvas = channels_first(on_canvas(image, rows * SIDE, columns * SIDE))
        tiles = canvas.reshape(3, rows, SIDE, columns, SIDE).transpose(1, 3, 0, 2, 4).reshape(-1, 3, SIDE, SIDE)
        np.testing.assert_array_equal(levels(image, view_strategy="grid")[1:], tiles)
        assert grid.get_number_of_image_patches(image.height, image.width) == 1 + len(tiles)


def test_images_too_large_to_resize_whole_give_nearly_the_same_pixels(monkeypatch):
    """The way of long strips and scans: boxes are cut directly. Pillow then reads them in float32 and may take its two
    passes in the other order, so that levels clipped in between differ; smooth images stay within two levels."""
    images = [tiny.image(seed, (20 + 30 * seed, 220 - 20 * seed)) for seed in range(10)]
    whole = levels(images, view_strategy="grid")
    monkeypatch.setattr(views_omnifusion, "MAX_RESIZED_PIXELS", 1)
    np.testing.assert_allclose(levels(images, view_strategy="grid"), whole, atol=2)


@pytest.fixture
def web(tmp_path):
    """The URL of a web server of the folder."""
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("limit, value", [("MAX_DOWNLOAD_BYTES", 1000), ("MAX_DOWNLOAD_SECONDS", -1)])
def test_a_url_gives_the_same_pixels_within_the_limits_of_a_download(web, tmp_path, monkeypatch, limit, value):
    (tmp_path / "image.png").write_bytes(encoded(PHOTO, "PNG"))
    (tmp_path / "large").write_bytes(bytes(10**6))
    np.testing.assert_array_equal(levels(f"{web}/image.png"), levels(PHOTO))
    monkeypatch.setattr(image_processing_omnifusion, limit, value)
    for url in (f"{web}/image.png", f"{web}/large"):
        with pytest.raises(ValueError, match=rf"^{url} cannot be fetched: more than \d+ bytes or -?\d+ s"):
            levels(url)
    for url in (f"{web}/absent.png", "http://[::1/a.png"):
        with pytest.raises(ValueError, match=f"^{re.escape(url)} cannot be fetched: "):
            levels(url)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16", "I", "1", "P"])
def test_grey_modes_give_the_same_grey(mode):
    grey, wide = PHOTO.convert("L"), {"I;16": np.uint16, "I": np.int32}
    image = Image.fromarray(np.asarray(grey).astype(wide[mode]) * 257) if mode in wide else grey.convert(mode)
    assert image.mode == mode
    shown = grey if mode in wide else image.convert("L")
    np.testing.assert_array_equal(levels(image), levels(shown.convert("RGB")))


def test_16_bit_values_are_rounded_to_the_nearest_level_and_8_bits_never_stretched_to_their_brightest():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = np.asarray(load_image(Image.fromarray(values), 65536))[..., 0]
    np.testing.assert_array_equal(found, np.round(values * (255 / 65535)))
    assert (found != values // 257).any()  # control: rounding down is another thing
    for dtype, level in (("uint8", 1), ("int8", 1), ("int16", 1), (bool, 255)):  # booleans are black or white
        assert (levels(np.ones((8, 8, 3), dtype)) == level).all()


def test_transparency_stands_on_white_as_in_a_viewer():
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 20, 40))
    palette = Image.open(BytesIO(encoded(image.quantize(4), "PNG")))
    for shown in (image, palette):
        views = levels(shown)[0]
        assert views[:, 16, 2].tolist() == [255, 0, 0] and views[:, 16, -2].tolist() == [255, 255, 255]
    assert levels(image.convert("RGB"))[0][:, 16, -2].tolist() == [0, 0, 0]  # control: what Pillow alone does


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [13_000, 20_000])
def test_decompression_bombs_are_refused_from_the_header(side, tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    path.write_bytes(declared_png(side))
    decoded, limit = [], Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image))
    for source in (path, path.read_bytes()) + ((Image.open(path),) if side == 13_000 else ()):
        with pytest.raises(ValueError, match="max_image_pixels"):
            processor()(source)
    assert not decoded and Image.MAX_IMAGE_PIXELS == limit


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("way", ["image processor", "processor", "processor, image options"])
def test_the_cap_is_that_of_the_call_or_else_of_the_processor_for_files_and_bytes(way, tmp_path):
    def read(source, own: dict, of_call: dict):
        if way == "image processor":
            return processor(**own)(source, **of_call)
        options = of_call if way == "processor" else {"images_kwargs": of_call}
        return tiny.processor(tiny.config(), **own)(text="<image>", images=source, **options)

    path = tmp_path / "scan.png"
    Image.new("1", (2000, 2000)).save(path)
    low, high = {"max_image_pixels": 10**6}, {"max_image_pixels": 10**7}
    for source in (path, path.read_bytes(), [str(path)]):
        for own, of_call in ((low, high), (high, {})):
            assert len(read(source, own, of_call).pixel_values) == 1
        for own, of_call in ((high, low), (low, {})):
            with pytest.raises(ValueError, match=r"4000000 pixels.* max_image_pixels=1000000.*\(now 1000000\)"):
                read(source, own, of_call)


def test_the_saved_file_records_backend_and_resampling(tmp_path):
    ours = processor(view_strategy="grid", image_fit="pad")
    ours.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (saved["backend"], saved["antialias"], saved["resample"]) == ("pil", True, Image.Resampling.BICUBIC)
    assert "regions" not in saved
    with_torchvision = partial(AutoImageProcessor.from_pretrained, backend="torchvision")
    for load in (OmniFusionImageProcessor.from_pretrained, AutoImageProcessor.from_pretrained, with_torchvision):
        assert type(reloaded := load(tmp_path)) is OmniFusionImageProcessor  # one class on every machine
        assert reloaded.to_dict() == ours.to_dict() | {"auto_map": saved["auto_map"]}


BAD_OPTIONS = {
    "use 'pil', or 'torchvision' with bilinear": {
        "resize_backend": "torchvision",
        "resample": Image.Resampling.LANCZOS,
    },
    "resize_backend `pillow` with resample 3 is unknown": {"resize_backend": "pillow"},
    "see resize_backend": {"backend": "torchvision"},
    "antialias is always True": {"antialias": False},
    "size must be square": {"size": {"height": 8, "width": 9}},
    "do_resize must stay True": {"do_resize": False},
    "max_regions must be 0 or more": {"max_regions": -1},
    "region_context must be 0 or more": {"region_context": -0.5},
}


@pytest.mark.parametrize("said", BAD_OPTIONS)
def test_options_without_views_are_refused(said):
    with pytest.raises(ValueError, match=said):
        OmniFusionImageProcessor(**{"size": SIZE} | BAD_OPTIONS[said])(PHOTO)


@pytest.mark.parametrize("top", [1, 255])
def test_what_bicubic_resizing_adds_to_the_range_of_floats_is_clipped(top):
    floats = (EIGHT_BIT / 255 * top).astype(np.float32)
    floats[0, 0], floats[0, 1] = top, 0
    expected = levels(floats)
    for beyond in (1.0001, 1.05, 1.28):
        floats[0, 0], floats[0, 1] = beyond * top, (1 - beyond) * top
        np.testing.assert_array_equal(levels(floats), expected)


def test_a_batch_in_one_array_is_as_many_images():
    batch = np.stack([EIGHT_BIT, EIGHT_BIT[::-1]])
    for given in (batch, torch.from_numpy(batch).permute(0, 3, 1, 2), [batch], [PHOTO, batch[1]]):
        np.testing.assert_array_equal(levels(given), levels([PHOTO, Image.fromarray(batch[1])]))
    grey = PHOTO.convert("L")
    for given in ([np.asarray(grey)] * 2, np.stack([np.asarray(grey)] * 2)[..., None]):
        np.testing.assert_array_equal(levels(given), levels([grey, grey]))


def test_images_are_counted_per_prompt_where_they_are_nested_and_boxes_go_with_them():
    assert images_per_prompt([[PHOTO, PHOTO], [], (EIGHT_BIT,)]) == [2, 0, 1]
    assert images_per_prompt([PHOTO, PHOTO]) is images_per_prompt(np.stack([EIGHT_BIT] * 2)) is None
    box = [0, 0, 9, 9]
    nested = pixels([[PHOTO, PHOTO], [PHOTO]], regions=[[[], [box]], [[box]]])
    np.testing.assert_array_equal(nested, pixels([PHOTO] * 3, regions=[[], [box], [box]]))
    with pytest.raises(ValueError, match=r"\[1, 2\] lists of regions for \[2, 1\] images"):
        pixels([[PHOTO, PHOTO], [PHOTO]], regions=[[[box]], [[], [box]]])


def test_every_container_and_every_way_to_name_a_file_gives_the_same_pixels(tmp_path):
    data, path = encoded(PHOTO, "PNG"), tmp_path / "a photo.png"
    path.write_bytes(data)
    text, lines = base64.b64encode(data).decode(), base64.encodebytes(data).decode()
    assert text.endswith("=")
    spooled = SpooledTemporaryFile()
    spooled.write(data)  # and not rewound
    open_files = [BytesIO(data), path.open("rb"), spooled]
    given = [data, bytearray(data), memoryview(data), path, str(path), *open_files]
    given += [path.as_uri(), path.as_uri().replace("file://", "file://localhost")]
    given += [text, lines, text[:99] + "\r\n" + text[99:], text + "\n", text.rstrip("=")]  # base64
    given += ["data:image/png;base64," + digits for digits in (text, lines)]
    given += [{"bytes": data, "path": None}, {"bytes": None, "path": str(path)}, {"bytes": data, "path": "absent.png"}]
    given += [PHOTO.convert("RGBA"), Image.open(BytesIO(encoded(PHOTO, "TIFF")))]
    given += [UNIT, torch.from_numpy(UNIT).permute(2, 0, 1).bfloat16(), UNIT[None]]
    for source in given:
        np.testing.assert_array_equal(levels(source), levels(PHOTO), err_msg=repr(source)[:99])
        np.testing.assert_array_equal(levels([source, source]), levels([PHOTO, PHOTO]), err_msg=repr(source)[:99])
        np.testing.assert_allclose(pixels(source, do_rescale=False), pixels(PHOTO), atol=1e-6)
    np.testing.assert_allclose(pixels(PHOTO, do_normalize=False), levels(PHOTO) / 255, atol=1e-6)
    assert not any(file.closed for file in open_files)
    open_files[1].close()
    assert (levels(tiny.image(1)) != levels(PHOTO)).any()  # control


def array_with(value, dtype: str) -> np.ndarray:
    array = np.zeros((8, 8, 3), dtype)
    array[1, 2, 0] = value
    return array


def test_what_is_no_image_is_one_value_error_that_names_it(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "short.png").write_bytes(encoded(Image.effect_noise((64, 64), 50), "PNG")[:1500])
    closed, shut, asserting = BytesIO(), *(Image.open(BytesIO(encoded(PHOTO, "PNG"))) for _ in range(2))
    closed.close()
    shut.fp.close()
    asserting.fp = None  # what Pillow leaves after `with open(…)`: an AssertionError without a word
    array = "^An image given as ndarray cannot be read: it"
    bad = {
        "got <class 'NoneType'>": None,
        "got <class 'float'>": [PHOTO, 0.5],
        "No image at `no.png`: neither an existing file": "no.png",
        "No image at `file:///no.png`": "file:///no.png",
        "No image at `file://host/a.png`": "file://host/a.png",
        "No image at `.*folder`": str(tmp_path / "folder"),
        r"`cats/dog` \(no such file, so read as base64\): Not an image": "cats/dog",
        "3 bytes: Not an image": b"abc",
        "gone.png: Not an image": {"bytes": b"abc", "path": "gone.png"},
        r"short\.png is broken: .*truncated": Image.open(tmp_path / "short.png"),
        "closed file": closed,
        "_io.StringIO": StringIO("text"),
        "An image of mode RGB declares 0 x 4 = 0 pixels": Image.new("RGB", (0, 4)),
        "mode I holds -5..0": Image.fromarray(np.array([[-5, 0]], np.int32)),
        "An image of mode F cannot be shown: mode F .32-bit float": Image.new("F", (8, 8)),
        "An image given as Tensor": torch.zeros(3, 8, 8, device="meta"),
        "An image of mode RGB is broken": shut,
        "is broken: AssertionError": asserting,
        rf"{array} must be \(H, W\), .* with C of \(1, 3, 4\), got \(9, 9, 2\)": np.zeros((9, 9, 2)),
        f"{array} holds float32 of nan": array_with(np.nan, "float32"),
        f"{array} holds float32 of -0.5 to 0; .* floats 0..255 or 0..1": array_with(-0.5, "float32"),
        f"{array} holds uint16 of .* divide 16-bit ones by 257": array_with(65535, "uint16"),
        f"{array} must hold numbers, got object": array_with(1, "object"),
    }
    for said, source in bad.items():
        with pytest.raises(ValueError, match=said):
            levels(source)
    assert (levels(array_with(0, "float32")) == 0).all()  # control


def damaged_files() -> dict[str, bytes]:
    """Files on which Pillow raises, by what."""
    files = {f"cut.{kind.lower()}": encoded(PHOTO, kind)[:-300] for kind in ("PNG", "QOI", "TIFF", "JPEG2000")}
    dds = encoded(PHOTO, "DDS")
    files |= {"cut.avif": encoded(PHOTO, "AVIF")[:-100], "unknown.dds": dds[:80] + b"\4\0\0\0ZZZZ" + dds[88:]}
    return files | {"checksum.icns": encoded(PHOTO.resize((64, 64)), "ICNS").replace(b"IHDR\0", b"IHDR\1")}


def read_by_the_reader(path):
    row = {"image": path.name, "conversations": [turn("human", "<image>What?"), turn("gpt", "It.")]}
    sample = SampleReader(image_folder=path.parent)(row, "sample 1")
    return open_images(sample, 2**27)[0]["content"][0]["image"]


def ask_about(path):
    question = Question("q", "t", [tiny.user("What?") | {"content": [{"type": "image", "image": path}]}], "It.")
    return opened(tiny.processor(tiny.config()), question)[0]["content"][0]["image"]


WAYS_IN = {
    "processor": lambda path: levels(path),
    "training": read_by_the_reader,
    "evaluation": ask_about,
    "views": lambda path: draw_file(str(path), str(path.with_name("drawing.png"))),
    "page": lambda path: conversation.read_image(str(path), 10**6),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WAYS_IN)
def test_every_way_in_takes_and_refuses_the_same_files(name, tmp_path, monkeypatch):
    load = WAYS_IN[name]
    whole = tmp_path / "whole.png"
    whole.write_bytes(encoded(PHOTO, "PNG", exif=b"Exif\0\0garbage"))
    load(whole)
    assert thumbnail(str(whole), tmp_path)  # of the report, which shows what it can
    monkeypatch.setattr(conversation, "SUFFIXES", {kind: [] for kind in Image.registered_extensions().values()})
    causes = set()
    for file, data in damaged_files().items():
        (tmp_path / file).write_bytes(data)
        assert thumbnail(str(tmp_path / file), tmp_path) is None
        with pytest.raises(ValueError, match=re.escape(file)) as error:
            load(tmp_path / file)
        chain = [error.value, error.value.__cause__, getattr(error.value.__cause__, "__cause__", None)]
        causes |= {type(each).__name__ for each in chain}
    assert causes >= {"OSError", "ValueError", "SyntaxError", "NotImplementedError"}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "MPO", "AVIF"])
def test_a_turned_image_is_turned_once_and_the_image_given_stays_as_it_was(kind):
    given = Image.open(BytesIO(stored_turned(PHOTO, 6, kind)))
    stored = given.convert("RGB")
    once = load_image(given, 10**6)
    is_upright = kind == "TIFF"  # by Pillow
    upright = stored if is_upright else stored.transpose(Image.Transpose.ROTATE_270)
    assert given.size == stored.size and (is_upright or given.getexif()[0x0112] == 6)
    assert load_image(once, 10**6) is once and once.tobytes() == upright.tobytes()
    assert once.size == PHOTO.size and (is_upright or once.tobytes() != stored.tobytes())  # control


def test_pillows_own_limit_is_left_alone_by_many_threads_and_gives_way_to_a_higher_cap(monkeypatch):
    monkeypatch.setattr(image_processing_omnifusion, "PILLOW_TAKES", 2 * 10**6)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    data, pillows_open = declared_png(2000), Image.open

    def load(cap: int):
        try:
            return image_processing_omnifusion.open_image(data, cap).size
        except ValueError as error:
            return "max_image_pixels" in str(error)

    def open_slowly(file):  # so that threads without a lock would meet here
        limit = Image.MAX_IMAGE_PIXELS
        sleep(0.002)
        assert limit == Image.MAX_IMAGE_PIXELS, "another thread changed the limit"
        return pillows_open(file)

    for opens, caps in ((open_slowly, [10**7, 10**8] * 20), (pillows_open, [10**5, 10**6, 10**7, 10**8] * 50)):
        monkeypatch.setattr(Image, "open", opens)
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(load, caps)) == [True if cap < 10**7 else (2000, 2000) for cap in caps]
    assert Image.MAX_IMAGE_PIXELS == 10**6


def test_without_conversion_an_image_keeps_its_channels_which_the_normalisation_must_have():
    transparent = PHOTO.convert("RGBA")
    four = {"image_mean": [0.5] * 4, "image_std": [0.5] * 4}
    for given in (transparent, encoded(transparent, "PNG"), np.asarray(transparent)):
        assert pixels(given, do_convert_rgb=False, **four).shape == (1, 4, SIDE, SIDE)
        with pytest.raises(ValueError, match="one value for each of an image's channels .*'A'"):
            pixels(given, do_convert_rgb=False)
        assert pixels(given).shape == (1, 3, SIDE, SIDE)
