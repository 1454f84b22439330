"""The image processor: exact pixels, every container of a picture, huge and broken files, what is saved."""

import base64
import json
import resource
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import tiny
import torch
from huggingface_hub.utils import httpx
from PIL import Image, ImageFile
from pixels import BACKGROUND, MEAN, SIDE, channels_first, encoded, levels, noise, processor, stored_turned
from transformers import AutoImageProcessor, CLIPImageProcessor, CLIPImageProcessorPil, SiglipImageProcessorPil

from omnifusion_hf import OmniFusionImageProcessor, image_processing_omnifusion
from omnifusion_hf.views_omnifusion import best_canvas, fit_inside


def on_canvas(image: Image.Image, height: int, width: int) -> Image.Image:
    """The picture resized, aspect kept, and centred on a padded canvas: the plain way to a grid."""
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
def test_case_16_pixel_values_are_those_of_the_encoders_own_processor(published, fit):
    reference = published()
    size = {"height": 224, "width": 224}
    means = {"image_mean": reference.image_mean, "image_std": reference.image_std}
    ours = OmniFusionImageProcessor(size=size, image_fit=fit, **means)
    for image in noise(10):
        pixels = ours(image, return_tensors="np").pixel_values
        np.testing.assert_allclose(pixels, reference(image, return_tensors="np").pixel_values, atol=1e-5)


def test_case_16_the_torchvision_backend_of_the_encoder_is_within_a_stated_bound():
    """At most 2 of 255 levels, 0.05 in the mean: what a checkpoint trained with that backend sees change."""
    pytest.importorskip("torchvision", reason="torchvision, the other backend, is not installed")
    size = {"height": SIDE, "width": SIDE}
    options = {"size": {"shortest_edge": SIDE}, "crop_size": size, "do_rescale": False, "do_normalize": False}
    other = CLIPImageProcessor(**options)
    pictures = [tiny.picture(seed, (40 + 9 * seed, 150 - 11 * seed)) for seed in range(10)]
    difference = np.abs(levels(pictures) - other(pictures, return_tensors="np").pixel_values.astype(np.float32))
    assert difference.max() <= 2 and difference.mean() < 0.05
    assert np.abs(levels(pictures) - levels(pictures, resample=Image.Resampling.BILINEAR)).max() > 2  # control


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


def test_pictures_too_large_to_resize_whole_give_nearly_the_same_pixels(monkeypatch):
    """The way of long strips and scans: boxes are cut directly. Pillow then reads them in float32 and may take its two
    passes in the other order, so that levels clipped in between differ; smooth pictures stay within two levels."""
    pictures = [tiny.picture(seed, (20 + 30 * seed, 220 - 20 * seed)) for seed in range(10)]
    whole = levels(pictures, view_strategy="grid")
    monkeypatch.setattr(image_processing_omnifusion, "MAX_RESIZED_PIXELS", 1)
    np.testing.assert_allclose(levels(pictures, view_strategy="grid"), whole, atol=2)


def test_pixel_comparison_can_fail():
    """Control: the same picture through another filter, or one pixel off, is not equal."""
    image = noise(1)[0].resize((90, 70))
    assert (levels(image) != levels(image, resample=Image.Resampling.BILINEAR)).any()
    assert (levels(image) != levels(image.crop((1, 0, 90, 70)))).any()


def test_normalisation_is_that_of_the_first_encoder():
    image = tiny.picture()
    expected = (levels(image)[0] / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape([0.3, 0.2, 0.1], (3, 1, 1))
    given = processor(image_std=[0.3, 0.2, 0.1])(image, return_tensors="np").pixel_values[0]
    np.testing.assert_allclose(given, expected, atol=1e-5)


def test_view_index_starts_again_at_every_picture():
    images = [tiny.picture(size=(20, 90)), tiny.picture(size=(60, 60))]
    grid = processor(view_strategy="grid")
    output = grid(images, return_tensors="pt")
    views = [grid.get_number_of_image_patches(image.height, image.width) for image in images]
    assert output.image_view_index.tolist() == [*range(views[0]), *range(views[1])]
    assert len(output.pixel_values) == sum(views)


def containers(image: Image.Image, folder) -> dict:
    """The same colours as PIL image, file bytes, path, data URI, arrays and tensor."""
    png, array = encoded(image, "PNG"), np.asarray(image)
    path = folder / "picture.png"
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


def test_case_14_every_container_gives_the_same_pixels(tmp_path):
    image = tiny.picture()
    expected = levels(image)
    for name, container in containers(image, tmp_path).items():
        np.testing.assert_array_equal(levels(container), expected, err_msg=name)
    assert (levels(tiny.picture(1)) != expected).any()


def test_case_14_a_url_gives_the_same_pixels(monkeypatch):
    image = tiny.picture()
    asked = []

    def get(url, **options):
        asked.append(url)
        return httpx.Response(200, content=encoded(image, "PNG"), request=httpx.Request("GET", url))

    monkeypatch.setattr(httpx, "get", get)
    np.testing.assert_array_equal(levels("https://example.org/picture.png"), levels(image))
    assert asked == ["https://example.org/picture.png"]


@pytest.mark.parametrize("mode, tolerance", [("L", 0), ("LA", 0), ("I;16", 1), ("I", 1), ("1", 0), ("P", 0)])
def test_case_14_grey_modes_give_the_same_grey(mode, tolerance):
    grey = tiny.picture().convert("L")
    if mode in ("I;16", "I"):
        wide = np.asarray(grey).astype(np.uint16) * 257
        image = Image.fromarray(wide.astype(np.int32)) if mode == "I" else Image.fromarray(wide)
    else:
        image = grey.convert(mode)
        grey = image.convert("L")
    assert image.mode == mode
    np.testing.assert_allclose(levels(image), levels(grey.convert("RGB")), atol=tolerance)


def test_case_14_transparency_stands_on_white_as_in_a_viewer():
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 20, 40))
    palette = Image.open(BytesIO(encoded(image.quantize(4), "PNG")))
    for picture in (image, palette):
        views = levels(picture)[0]
        assert views[:, 16, 2].tolist() == [255, 0, 0] and views[:, 16, -2].tolist() == [255, 255, 255]
    assert levels(image.convert("RGB"))[0][:, 16, -2].tolist() == [0, 0, 0]  # control: what Pillow alone does


@pytest.mark.parametrize("orientation", range(1, 9))
def test_case_14_exif_orientation_is_applied_to_files_and_pil_images(orientation):
    upright = tiny.picture(size=(40, 40))
    data = stored_turned(upright, orientation)
    np.testing.assert_array_equal(levels(data), levels(upright))
    np.testing.assert_array_equal(levels(Image.open(BytesIO(data))), levels(upright))
    if orientation > 1:
        assert (levels(encoded(Image.open(BytesIO(data)), "PNG", exif=b"")) != levels(upright)).any()


def test_case_14_what_cannot_be_read_is_refused_with_a_reason():
    bad = [
        ("no.png", "neither an existing file"),
        (b"not a picture", "Not a picture file"),
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


def test_case_14_a_file_that_was_cut_short_is_named(tmp_path):
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
def test_case_15_decompression_bombs_are_refused_from_the_header(side, tmp_path, monkeypatch):
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


def test_case_15_a_large_scan_passes_when_the_cap_is_raised(tmp_path):
    path = tmp_path / "scan.png"
    path.write_bytes(declared_png(2000))
    with pytest.raises(ValueError, match="4000000 pixels"):
        processor(max_image_pixels=10**6)(path)
    assert len(processor(max_image_pixels=10**7)(path).pixel_values) == 1


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_case_15_the_cap_of_a_call_holds_for_files_and_bytes(tmp_path):
    path = tmp_path / "scan.png"
    path.write_bytes(declared_png(2000))
    for source in (path, path.read_bytes(), [str(path)]):
        assert len(processor(max_image_pixels=10**6)(source, max_image_pixels=10**7).pixel_values) == 1
        with pytest.raises(ValueError, match="max_image_pixels"):
            processor()(source, max_image_pixels=10**6)


def test_case_15_a_long_strip_gives_bounded_views():
    strip = Image.new("RGB", (20_000, 4), (10, 200, 30))
    views = levels(strip, view_strategy="grid")
    assert len(views) == processor(view_strategy="grid").get_number_of_image_patches(4, 20_000) <= 5


def test_case_16_the_saved_file_records_backend_and_resampling(tmp_path):
    ours = processor(view_strategy="grid", image_fit="pad")
    ours.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (saved["backend"], saved["antialias"], saved["resample"]) == ("pil", True, Image.Resampling.BICUBIC)
    reloaded = OmniFusionImageProcessor.from_pretrained(tmp_path)
    assert reloaded.to_dict() == ours.to_dict() | {"auto_map": saved["auto_map"]}
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), OmniFusionImageProcessor)
    with pytest.raises(ValueError, match="antialias is always True"):
        OmniFusionImageProcessor(antialias=False)


def test_case_16_the_backend_is_the_same_with_torchvision_asked_for(tmp_path):
    """One class on every machine: asking for another backend does not change pixels silently."""
    processor().save_pretrained(tmp_path)
    image = tiny.picture()
    asked = AutoImageProcessor.from_pretrained(tmp_path, backend="torchvision")
    expected = processor()(image, return_tensors="pt").pixel_values
    assert torch.equal(asked(image, return_tensors="pt").pixel_values, expected)


@pytest.mark.parametrize("options", [{"size": {"height": 8, "width": 9}}, {"do_resize": False}])
def test_views_are_square_and_resized(options):
    with pytest.raises(ValueError, match="square|must stay True"):
        processor()(tiny.picture(), **options)
