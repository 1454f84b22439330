"""The image processor: exact pixels, every container of an image, huge and broken files, what is saved."""

import base64
import contextlib
import json
import re
import resource
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO, StringIO
from tempfile import SpooledTemporaryFile
from time import sleep

import numpy as np
import pytest
import tiny
import torch
from conversations import turn
from PIL import Image, ImageFile
from pixels import BACKGROUND, MEAN, SIDE, channels_first, encoded, levels, noise, processor, stored_turned
from transformers import AutoImageProcessor, CLIPImageProcessor, CLIPImageProcessorPil, SiglipImageProcessorPil

from omnifusion_hf import OmniFusionImageProcessor
from omnifusion_hf.evaluation.questions import Question, opened
from omnifusion_hf.evaluation.robustness.errors import thumbnail
from omnifusion_hf.model import image_processing_omnifusion
from omnifusion_hf.model.views_omnifusion import best_canvas, fit_inside
from omnifusion_hf.serving import conversation
from omnifusion_hf.training.conversations import SampleReader, open_images
from omnifusion_hf.visualize import draw_file


def on_canvas(image: Image.Image, height: int, width: int) -> Image.Image:
    """The image resized, aspect kept, and centred on a padded canvas: the plain way to a grid."""
    resized = fit_inside((image.height, image.width), (height, width))
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    corner = ((width - resized[1]) // 2, (height - resized[0]) // 2)
    canvas.paste(image.resize(resized[::-1], Image.Resampling.BICUBIC), corner)
    return canvas


def test_crop_equals_clips_own_preprocessing_in_every_pixel():
    size = {"height": SIDE, "width": SIDE}
    clip = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size, do_rescale=False, do_normalize=False)
    for image in noise(300):
        np.testing.assert_array_equal(levels(image), clip(image, return_tensors="np").pixel_values)


@pytest.mark.parametrize("published, fit", [(CLIPImageProcessorPil, "crop"), (SiglipImageProcessorPil, "squash")])
def test_pixel_values_are_those_of_the_encoders_own_processor(published, fit):
    reference = published()
    size = {"height": 224, "width": 224}
    means = {"image_mean": reference.image_mean, "image_std": reference.image_std}
    ours = OmniFusionImageProcessor(size=size, image_fit=fit, **means)
    for image in noise(10):
        pixels = ours(image, return_tensors="np").pixel_values
        np.testing.assert_allclose(pixels, reference(image, return_tensors="np").pixel_values, atol=1e-5)


def test_the_torchvision_backend_of_the_encoder_is_within_a_stated_bound():
    """At most 2 of 255 levels, 0.05 in the mean: what a checkpoint trained with that backend sees change."""
    pytest.importorskip("torchvision", reason="torchvision, the other backend, is not installed")
    size = {"height": SIDE, "width": SIDE}
    options = {"size": {"shortest_edge": SIDE}, "crop_size": size, "do_rescale": False, "do_normalize": False}
    other = CLIPImageProcessor(**options)
    images = [tiny.image(seed, (40 + 9 * seed, 150 - 11 * seed)) for seed in range(10)]
    difference = np.abs(levels(images) - other(images, return_tensors="np").pixel_values.astype(np.float32))
    assert difference.max() <= 2 and difference.mean() < 0.05
    assert np.abs(levels(images) - levels(images, resample=Image.Resampling.BILINEAR)).max() > 2  # control


def test_pad_and_squash_equal_pillow_in_every_pixel():
    for image in noise(150):
        np.testing.assert_array_equal(levels(image, image_fit="pad")[0], channels_first(on_canvas(image, SIDE, SIDE)))
        squashed = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(levels(image, image_fit="squash")[0], channels_first(squashed))


def test_grid_tiles_equal_cutting_the_resized_canvas():
    grid = processor(view_strategy="grid")
    for image in noise(100):
        rows, columns = best_canvas((image.height, image.width), grid.grid_canvases, SIDE)
        canvas = channels_first(on_canvas(image, rows * SIDE, columns * SIDE))
        tiles = canvas.reshape(3, rows, SIDE, columns, SIDE).transpose(1, 3, 0, 2, 4).reshape(-1, 3, SIDE, SIDE)
        np.testing.assert_array_equal(levels(image, view_strategy="grid")[1:], tiles)


def test_images_too_large_to_resize_whole_give_nearly_the_same_pixels(monkeypatch):
    """The way of long strips and scans: boxes are cut directly. Pillow then reads them in float32 and may take its two
    passes in the other order, so that levels clipped in between differ; smooth images stay within two levels."""
    images = [tiny.image(seed, (20 + 30 * seed, 220 - 20 * seed)) for seed in range(10)]
    whole = levels(images, view_strategy="grid")
    monkeypatch.setattr(image_processing_omnifusion, "MAX_RESIZED_PIXELS", 1)
    np.testing.assert_allclose(levels(images, view_strategy="grid"), whole, atol=2)


def test_pixel_comparison_can_fail():
    """Control: the same image through another filter, or one pixel off, is not equal."""
    image = noise(1)[0].resize((90, 70))
    assert (levels(image) != levels(image, resample=Image.Resampling.BILINEAR)).any()
    assert (levels(image) != levels(image.crop((1, 0, 90, 70)))).any()


def test_normalisation_is_that_of_the_first_encoder():
    image = tiny.image()
    expected = (levels(image)[0] / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape([0.3, 0.2, 0.1], (3, 1, 1))
    given = processor(image_std=[0.3, 0.2, 0.1])(image, return_tensors="np").pixel_values[0]
    np.testing.assert_allclose(given, expected, atol=1e-5)


def test_view_index_starts_again_at_every_image():
    images = [tiny.image(size=(20, 90)), tiny.image(size=(60, 60))]
    grid = processor(view_strategy="grid")
    output = grid(images, return_tensors="pt")
    views = [grid.get_number_of_image_patches(image.height, image.width) for image in images]
    assert output.image_view_index.tolist() == [*range(views[0]), *range(views[1])]
    assert len(output.pixel_values) == sum(views)


def containers(image: Image.Image, folder) -> dict:
    """The same colours as PIL image, file bytes, path, data URI, arrays and tensor."""
    png, array = encoded(image, "PNG"), np.asarray(image)
    path = folder / "image.png"
    path.write_bytes(png)
    return {
        "bytes": png,
        "path": path,
        "str": str(path),
        "base64": base64.b64encode(png).decode(),
        "data URI": "data:image/png;base64," + base64.b64encode(png).decode(),
        "array": array,
        "channels first": array.transpose(2, 0, 1),
        "0..1": array.astype(np.float32) / 255,
        "tensor": torch.from_numpy(array.transpose(2, 0, 1).copy()),
        "bfloat16 tensor": torch.from_numpy(array.transpose(2, 0, 1).copy()).bfloat16() / 255,
        "RGBA": image.convert("RGBA"),
        "CMYK-free TIFF": Image.open(BytesIO(encoded(image, "TIFF"))),
    }


def test_every_container_gives_the_same_pixels(tmp_path):
    image = tiny.image()
    expected = levels(image)
    for name, container in containers(image, tmp_path).items():
        np.testing.assert_array_equal(levels(container), expected, err_msg=name)
    assert (levels(tiny.image(1)) != expected).any()


@pytest.fixture
def web():
    """A web server: `web[path]` is the body at a path, a list is sent part by part; any other path is a 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = bodies.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            with contextlib.suppress(OSError):  # the client may go away
                for part in [body or b""] if not isinstance(body, list) else body:
                    self.wfile.write(part)

        def log_message(self, *args):
            pass

    bodies = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        bodies["url"] = f"http://127.0.0.1:{server.server_port}"
        yield bodies
        server.shutdown()


def test_a_url_gives_the_same_pixels(web):
    image = tiny.image()
    web["/image.png"] = encoded(image, "PNG")
    np.testing.assert_array_equal(levels(web["url"] + "/image.png"), levels(image))


@pytest.mark.parametrize("limit, value", [("MAX_DOWNLOAD_BYTES", 1000), ("MAX_DOWNLOAD_SECONDS", -1)])
def test_a_download_ends_at_its_limits(web, monkeypatch, limit, value):
    web["/image.png"] = encoded(tiny.image(), "PNG")
    web["/endless"] = [bytes(500)] * 1000
    assert len(web["/image.png"]) > 1000
    levels(web["url"] + "/image.png")  # control
    monkeypatch.setattr(image_processing_omnifusion, limit, value)
    for path in ("/image.png", "/endless"):
        with pytest.raises(ValueError, match=rf"{path} cannot be fetched: more than \d+ bytes or -?\d+ s"):
            levels(web["url"] + path)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16", "I", "1", "P"])
def test_grey_modes_give_the_same_grey(mode):
    grey = tiny.image().convert("L")
    if mode in ("I;16", "I"):
        wide = np.asarray(grey).astype(np.uint16) * 257
        image = Image.fromarray(wide.astype(np.int32)) if mode == "I" else Image.fromarray(wide)
    else:
        image = grey.convert(mode)
        grey = image.convert("L")
    assert image.mode == mode
    np.testing.assert_array_equal(levels(image), levels(grey.convert("RGB")))


def test_16_bit_values_are_rounded_to_the_nearest_level():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = np.asarray(image_processing_omnifusion.load_image(Image.fromarray(values), 65536))[..., 0]
    np.testing.assert_array_equal(found, np.round(values * (255 / 65535)))
    assert (found != values // 257).any()  # control: rounding down is another thing


def test_transparency_stands_on_white_as_in_a_viewer():
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 20, 40))
    palette = Image.open(BytesIO(encoded(image.quantize(4), "PNG")))
    for shown in (image, palette):
        views = levels(shown)[0]
        assert views[:, 16, 2].tolist() == [255, 0, 0] and views[:, 16, -2].tolist() == [255, 255, 255]
    assert levels(image.convert("RGB"))[0][:, 16, -2].tolist() == [0, 0, 0]  # control: what Pillow alone does


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_files_and_pil_images(orientation):
    upright = tiny.image(size=(40, 40))
    data = stored_turned(upright, orientation)
    np.testing.assert_array_equal(levels(data), levels(upright))
    np.testing.assert_array_equal(levels(Image.open(BytesIO(data))), levels(upright))
    if orientation > 1:
        assert (levels(encoded(Image.open(BytesIO(data)), "PNG", exif=b"")) != levels(upright)).any()


def test_what_cannot_be_read_is_refused_with_a_reason():
    bad = [
        ("no.png", "neither an existing file"),
        (b"not an image", "Not an image file"),
        (Image.new("F", (8, 8)), "32-bit float"),
        (np.full((8, 8, 3), -1.0, dtype=np.float32), "0..255 or 0..1"),
    ]
    for source, said in bad:
        with pytest.raises(ValueError, match=said):
            levels(source)


def declared_png(side: int) -> bytes:
    """A PNG of a few dozen KB that declares side x side pixels; all are black."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    data = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)  # one bit a pixel, grey
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_file_that_was_cut_short_is_named(tmp_path):
    whole, short = tmp_path / "whole.png", tmp_path / "short.png"
    Image.effect_noise((64, 64), 50).save(whole)
    short.write_bytes(whole.read_bytes()[:1500])
    processor = OmniFusionImageProcessor()
    assert processor(str(whole), return_tensors="pt").pixel_values.shape == (1, 3, 336, 336)
    for cut in (str(short), Image.open(short)):
        with pytest.raises(ValueError, match=r"short\.png is broken: .*truncated"):
            processor(cut, return_tensors="pt")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [13_000, 20_000])
def test_decompression_bombs_are_refused_from_the_header(side, tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    path.write_bytes(declared_png(side))
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image))
    before, limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, Image.MAX_IMAGE_PIXELS
    for source in (path, path.read_bytes()) + ((Image.open(path),) if side == 13_000 else ()):
        with pytest.raises(ValueError, match="max_image_pixels"):
            processor()(source)
    assert not decoded
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024  # KiB
    assert Image.MAX_IMAGE_PIXELS == limit


def test_a_large_scan_passes_when_the_cap_is_raised(tmp_path):
    path = tmp_path / "scan.png"
    path.write_bytes(declared_png(2000))
    with pytest.raises(ValueError, match="4000000 pixels"):
        processor(max_image_pixels=10**6)(path)
    assert len(processor(max_image_pixels=10**7)(path).pixel_values) == 1


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_cap_of_a_call_holds_for_files_and_bytes(tmp_path):
    path = tmp_path / "scan.png"
    path.write_bytes(declared_png(2000))
    for source in (path, path.read_bytes(), [str(path)]):
        assert len(processor(max_image_pixels=10**6)(source, max_image_pixels=10**7).pixel_values) == 1
        with pytest.raises(ValueError, match="max_image_pixels"):
            processor()(source, max_image_pixels=10**6)


def test_a_long_strip_gives_bounded_views():
    strip = Image.new("RGB", (20_000, 4), (10, 200, 30))
    views = levels(strip, view_strategy="grid")
    assert len(views) == processor(view_strategy="grid").get_number_of_image_patches(4, 20_000) <= 5


def test_the_saved_file_records_backend_and_resampling(tmp_path):
    ours = processor(view_strategy="grid", image_fit="pad")
    ours.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (saved["backend"], saved["antialias"], saved["resample"]) == ("pil", True, Image.Resampling.BICUBIC)
    reloaded = OmniFusionImageProcessor.from_pretrained(tmp_path)
    assert reloaded.to_dict() == ours.to_dict() | {"auto_map": saved["auto_map"]}
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), OmniFusionImageProcessor)
    with pytest.raises(ValueError, match="antialias is always True"):
        OmniFusionImageProcessor(antialias=False)


def test_the_backend_is_the_same_with_torchvision_asked_for(tmp_path):
    """One class on every machine: asking for another backend does not change pixels silently."""
    processor().save_pretrained(tmp_path)
    image = tiny.image()
    asked = AutoImageProcessor.from_pretrained(tmp_path, backend="torchvision")
    expected = processor()(image, return_tensors="pt").pixel_values
    assert torch.equal(asked(image, return_tensors="pt").pixel_values, expected)


@pytest.mark.parametrize("options", [{"size": {"height": 8, "width": 9}}, {"do_resize": False}])
def test_views_are_square_and_resized(options):
    with pytest.raises(ValueError, match="square|must stay True"):
        processor()(tiny.image(), **options)


# What stands for an image, and what no image is.

PHOTO = tiny.image()
EIGHT_BIT = np.asarray(PHOTO)


def pixels(image, **options) -> np.ndarray:
    return processor(**options)(image, return_tensors="np").pixel_values


@pytest.mark.parametrize("do_rescale", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_in_0_to_1_give_the_pixels_of_the_8_bit_image_rescaled_or_not(dtype, do_rescale):
    floats, expected = (EIGHT_BIT / 255).astype(dtype), pixels(PHOTO)
    tensor = torch.from_numpy(floats).permute(2, 0, 1)
    for given in (floats, tensor, np.stack([floats, floats])):
        given = pixels(given, do_rescale=do_rescale)
        np.testing.assert_allclose(given, np.broadcast_to(expected, given.shape), atol=1e-6)
    assert np.abs(pixels(EIGHT_BIT // 2) - expected).max() > 0.5  # control


@pytest.mark.parametrize("given", [PHOTO, EIGHT_BIT, EIGHT_BIT.astype(np.float32), EIGHT_BIT / 255])
def test_normalised_pixels_are_the_same_whatever_range_is_given_and_whether_it_is_rescaled(given):
    np.testing.assert_allclose(pixels(given, do_rescale=False), pixels(PHOTO), atol=1e-6)
    raw = pixels(given, do_rescale=False, do_normalize=False)
    np.testing.assert_array_equal(raw, levels(PHOTO))  # 0..255, whatever was given
    np.testing.assert_allclose(pixels(given, do_normalize=False), raw / 255, atol=1e-6)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float64"]
)
def test_values_of_0_to_255_mean_the_same_in_every_dtype(dtype):
    np.testing.assert_array_equal(levels(EIGHT_BIT.astype(dtype)), levels(PHOTO))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int64"])
def test_an_integer_image_is_never_stretched_to_its_brightest_value(dtype):
    assert (levels(np.ones((8, 8, 3), dtype)) == 1).all()
    assert (levels(np.full((8, 8, 3), 127, dtype)) == 127).all()
    assert (levels(np.ones((8, 8, 3), bool)) == 255).all()  # control: black or white


@pytest.mark.parametrize("top", [1, 255])
def test_what_bicubic_resizing_adds_to_the_range_of_floats_is_clipped(top):
    floats = (EIGHT_BIT / 255 * top).astype(np.float32)
    floats[0, 0], floats[0, 1] = top, 0
    expected = levels(floats)
    for beyond in (1.0001, 1.05, 1.28):
        floats[0, 0], floats[0, 1] = beyond * top, (1 - beyond) * top
        np.testing.assert_array_equal(levels(floats), expected)
    stripes = torch.tensor([0.0, 1.0, 1.0, 0.0]).repeat(8)[None, None, :, None] * torch.ones(3, 32)[:, None]
    larger = torch.nn.functional.interpolate(stripes, size=(99, 99), mode="bicubic", antialias=True)[0]
    assert larger.max() > 1.1 and larger.min() < -0.05
    np.testing.assert_array_equal(levels(larger * top), levels(larger.clamp(0, 1) * top))


@pytest.mark.parametrize(
    "value, dtype, said",
    [
        (np.nan, "float32", "nan"),
        (np.inf, "float16", "inf"),
        (-np.inf, "float64", "-inf"),
        (-0.5, "float32", "float32 of -0.5 to 0"),
        (1.5, "float32", "float32 of 0 to 1.5"),
        (400, "float32", "of 0 to 400"),
        (-1, "int8", "int8 of -1 to 0"),
        (256, "int16", "int16 of 0 to 256"),
        (65535, "uint16", "divide 16-bit ones by 257"),
        (2**63, "uint64", "uint64"),
        (1, "complex64", "numbers, got complex64"),
        (1, "object", "numbers, got object"),
        (1, "U1", "numbers, got <U1"),
    ],
)
def test_values_that_are_no_levels_are_refused_with_their_range(value, dtype, said):
    array = np.zeros((8, 8, 3), dtype)
    array[1, 2, 0] = value
    with pytest.raises(ValueError, match=f"^An image given as ndarray cannot be read: it .*{said}"):
        levels(array)
    assert (levels(np.zeros((8, 8, 3), np.float32)) == 0).all()  # control


def test_views_that_were_normalised_already_are_refused():
    normalised = torch.from_numpy(pixels(PHOTO)[0])
    for given in (normalised, normalised / 10 - 0.4, torch.rand(3, 8, 8) - 0.5):
        with pytest.raises(ValueError, match="floats 0..255 or 0..1"):
            levels(given)


@pytest.mark.parametrize(
    "shape", [(1, 100, 3), (3, 100, 3), (1, 1, 3), (3, 3, 3), (4, 9, 3), (3, 9, 4), (1, 9, 1), (3, 9)]
)
def test_where_both_layouts_fit_arrays_end_with_the_channels_and_tensors_begin_with_them(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    flat_channel = array[..., 0] if shape[2:] == (1,) else array
    image = Image.fromarray(flat_channel)
    np.testing.assert_array_equal(levels(array), levels(image))
    if len(shape) == 3:
        tensor = torch.from_numpy(array).permute(2, 0, 1)
        np.testing.assert_array_equal(levels(tensor), levels(image))
        np.testing.assert_array_equal(
            levels(np.moveaxis(array, -1, 0), input_data_format="channels_first"), levels(image)
        )
        np.testing.assert_array_equal(
            levels(torch.from_numpy(array), input_data_format="channels_last"), levels(image)
        )
    if shape == (3, 3, 3):
        assert (levels(array, input_data_format="channels_first") != levels(image)).any()  # control


@pytest.mark.parametrize("shape", [(), (9,), (0, 9, 3), (9, 0), (9, 9, 2), (9, 9, 5), (2, 9, 9)])
def test_arrays_of_another_shape_are_refused(shape):
    for array in (np.zeros(shape, np.uint8), torch.zeros(shape)):
        with pytest.raises(ValueError, match=r"\(H, W, C\) or \(C, H, W\) with C of \(1, 3, 4\), got \("):
            levels(array)
    assert levels(np.zeros((9, 9), np.uint8)).shape == (1, 3, SIDE, SIDE)  # control


def test_a_batch_in_one_array_is_as_many_images():
    batch = np.stack([EIGHT_BIT, EIGHT_BIT[::-1]])
    expected = levels([PHOTO, Image.fromarray(batch[1])])
    for given in (batch, torch.from_numpy(batch).permute(0, 3, 1, 2), [batch], [PHOTO, batch[1]]):
        np.testing.assert_array_equal(levels(given), expected)


def test_every_way_to_name_a_file_gives_its_image(tmp_path):
    data, path = encoded(PHOTO, "PNG"), tmp_path / "a photo.png"
    path.write_bytes(data)
    text = base64.b64encode(data).decode()
    assert text.endswith("=")
    spooled = SpooledTemporaryFile()
    spooled.write(data)  # and not rewound
    given = {
        "file URL": path.as_uri(),
        "file URL with a host": path.as_uri().replace("file://", "file://localhost"),
        "base64 in lines": base64.encodebytes(data).decode(),
        "base64 with Windows lines": text[:99] + "\r\n" + text[99:],
        "base64 and a newline": text + "\n",
        "base64 without padding": text.rstrip("="),
        "data URI in lines": "data:image/png;base64," + base64.encodebytes(data).decode(),
        "BytesIO": BytesIO(data),
        "open file": path.open("rb"),
        "temporary file": spooled,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "datasets' bytes": {"bytes": data, "path": None},
        "datasets' path": {"bytes": None, "path": str(path)},
        "datasets' both": {"bytes": data, "path": "elsewhere.png"},
    }
    for name, source in given.items():
        np.testing.assert_array_equal(levels(source), levels(PHOTO), err_msg=name)
        np.testing.assert_array_equal(levels([source, source]), levels([PHOTO, PHOTO]), err_msg=f"{name} twice")
    assert not given["open file"].closed and not given["BytesIO"].closed
    given["open file"].close()


def test_what_is_no_image_is_one_value_error_that_names_it(tmp_path):
    (tmp_path / "folder").mkdir()
    closed = BytesIO(b"")
    closed.close()
    shut = Image.open(BytesIO(encoded(PHOTO, "PNG")))
    shut.fp.close()
    asserting = Image.open(BytesIO(encoded(PHOTO, "PNG")))
    asserting.fp = None  # what Pillow leaves behind `with open(…)`: an AssertionError without a word
    bad = {
        "got <class 'NoneType'>": None,
        "got <class 'int'>": 3,
        "got <class 'float'>": [PHOTO, 0.5],
        "No image at `file:///no.png`": "file:///no.png",
        "No image at `file://host/a.png`": "file://host/a.png",
        "No image at `.*folder`": str(tmp_path / "folder"),
        r"`cats/dog` \(no such file, so read as base64\): Not an image": "cats/dog",
        "3 bytes: Not an image": b"abc",
        "gone.png: Not an image": {"bytes": b"abc", "path": "gone.png"},
        "closed file": closed,
        "_io.StringIO": StringIO("text"),
        "An image of mode RGB declares 0 x 4 = 0 pixels": Image.new("RGB", (0, 4)),
        "mode I holds -5..0": Image.fromarray(np.array([[-5, 0]], np.int32)),
        "An image of mode F cannot be shown": Image.new("F", (8, 8)),
        "An image given as Tensor": torch.zeros(3, 8, 8, device="meta"),
        "An image of mode RGB is broken": shut,
        "is broken: AssertionError": asserting,
    }
    for said, source in bad.items():
        with pytest.raises(ValueError, match=said):
            levels(source)
    assert levels(PHOTO).shape == (1, 3, SIDE, SIDE)  # control


def test_a_url_that_does_not_answer_is_one_value_error(web):
    for url in (f"{web['url']}/a.png", "http://[::1/a.png"):
        with pytest.raises(ValueError, match=f"^{re.escape(url)} cannot be fetched: "):
            levels(url)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("exif", [b"garbage", b"MM\0*\0", b"", bytes(20), b"II*\0\xff\xff\xff\xff"])
def test_malformed_exif_is_no_reason_to_refuse_an_image(kind, exif):
    options = {"lossless": True} if kind == "WEBP" else {}
    plain, damaged = encoded(PHOTO, kind, **options), encoded(PHOTO, kind, exif=b"Exif\0\0" + exif, **options)
    expected = levels(plain)
    np.testing.assert_array_equal(levels(damaged), expected)
    np.testing.assert_array_equal(levels(Image.open(BytesIO(damaged))), expected)


def damaged_files() -> dict[str, bytes]:
    """Files on which Pillow raises, by what."""
    cut = {f"cut.{kind.lower()}": encoded(PHOTO, kind)[:-300] for kind in ("PNG", "QOI", "TIFF", "JPEG2000")}
    unknown = encoded(PHOTO, "DDS")
    unknown = unknown[:80] + struct.pack("<I4s", 4, b"ZZZZ") + unknown[88:]
    checksum = encoded(PHOTO.resize((64, 64)), "ICNS").replace(b"IHDR\0", b"IHDR\1")
    return cut | {"cut.avif": encoded(PHOTO, "AVIF")[:-100], "unknown.dds": unknown, "checksum.icns": checksum}


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


def test_a_turned_image_is_turned_once_and_the_image_given_stays_as_it_was():
    given = Image.open(BytesIO(stored_turned(PHOTO, 6)))
    once = image_processing_omnifusion.load_image(given, 10**6)
    assert once.size == PHOTO.size and given.size == PHOTO.size[::-1] and given.getexif()[0x0112] == 6
    assert image_processing_omnifusion.load_image(once, 10**6) is once
    assert once.tobytes() == PHOTO.tobytes() != given.tobytes()


def test_pillows_own_limit_is_left_alone_by_many_threads_and_gives_way_to_a_higher_cap(monkeypatch, tmp_path):
    monkeypatch.setattr(image_processing_omnifusion, "PILLOW_TAKES", 2 * 10**6)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    data, seen = declared_png(2000), []

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

    pillows_open = Image.open
    monkeypatch.setattr(Image, "open", open_slowly)
    caps = [10**7, 10**8] * 20
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(load, caps)) == [(2000, 2000)] * 40
    monkeypatch.setattr(Image, "open", pillows_open)
    caps = [10**5, 10**6, 10**7, 10**8] * 50
    with ThreadPoolExecutor(8) as threads:
        seen = list(threads.map(load, caps))
    assert seen == [True, True, (2000, 2000), (2000, 2000)] * 50
    assert Image.MAX_IMAGE_PIXELS == 10**6


def test_without_conversion_an_image_keeps_its_channels_which_the_normalisation_must_have():
    transparent = PHOTO.convert("RGBA")
    four = {"image_mean": [0.5] * 4, "image_std": [0.5] * 4}
    for given in (transparent, encoded(transparent, "PNG"), np.asarray(transparent)):
        assert pixels(given, do_convert_rgb=False, **four).shape == (1, 4, SIDE, SIDE)
        with pytest.raises(ValueError, match="one value for each of an image's channels .*'A'"):
            pixels(given, do_convert_rgb=False)
        assert pixels(given).shape == (1, 3, SIDE, SIDE)
