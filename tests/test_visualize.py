"""The drawing of views: what is outlined, hatched and greyed, on any image; files are whole or absent."""

from unittest.mock import Mock

import conversations
import numpy as np
import pytest
from PIL import Image
from pixels import stored_turned

from omnifusion_hf import OmniFusionImageProcessor, io
from omnifusion_hf import visualize as draw_views
from omnifusion_hf.cli import main
from omnifusion_hf.model.processing_omnifusion import TokenCount
from omnifusion_hf.visualize import COLOURS, draw_file


def scene(image: Image.Image, **options) -> tuple[np.ndarray, list]:
    """The image with its boxes, not yet halved, and the places of image and views on it."""
    views = OmniFusionImageProcessor(**options).plan_views([(image.height, image.width)])[0]
    places = draw_views._on_page([(0, 0, image.width, image.height), *views])
    return np.asarray(draw_views._draw_scene(image, views, 576)), places


def edge_colours(drawn: np.ndarray, place: tuple) -> set[tuple]:
    """Colours of the upper part of a box's left edge, some pixels around it included."""
    left, top, _, bottom = place
    return {tuple(pixel) for pixel in drawn[(2 * top + bottom) // 3, left - 14 : left + 6].tolist()}


@pytest.mark.parametrize("shade", [0, 128, 255])
def test_every_view_is_outlined_in_its_colour_between_white_on_any_image(shade):
    image = Image.new("RGB", (800, 600), (shade,) * 3)
    options = {"view_strategy": "grid", "image_fit": "pad", "regions": [[[500, 400, 580, 480]]]}
    drawn, (_, *places) = scene(image, **options)
    kinds = ["whole", *["tile"] * 4, "region"]
    assert len(places) == len(kinds)
    for kind, place in zip(kinds, places):
        assert {COLOURS[kind], draw_views.WHITE} <= edge_colours(drawn, place)
    assert not set(COLOURS.values()) & edge_colours(drawn, (300, 300, 400, 400))  # control: no line there


def test_padding_is_hatched_and_what_no_view_shows_is_greyed():
    image = Image.new("RGB", (400, 100), (250, 0, 0))
    drawn, (frame, whole) = scene(image, image_fit="pad")
    above = drawn[whole[1] + 60 : frame[1] - 20, 100:600].reshape(-1, 3)
    assert {tuple(pixel) for pixel in above.tolist()} == {draw_views.WHITE, draw_views.HATCH}
    assert drawn[(frame[1] + frame[3]) // 2, 200].tolist() == [250, 0, 0]
    drawn, (frame, whole) = scene(image, image_fit="crop")
    middle = (frame[1] + frame[3]) // 2
    unseen = drawn[middle, frame[0] + 20].astype(int)
    assert drawn[middle, (whole[0] + whole[2]) // 2].tolist() == [250, 0, 0] and unseen.max() - unseen.min() < 80


@pytest.mark.parametrize("size", [(1, 1), (4000, 3), (3, 4000), (2000, 1500)])
def test_images_of_any_shape_are_drawn_at_a_bounded_size(size, tmp_path):
    Image.new("RGB", size, (9, 90, 180)).save(tmp_path / "in.png")
    for fit in ("crop", "pad", "squash"):
        count = draw_file(tmp_path / "in.png", tmp_path / "out.png", view_strategy="grid", image_fit=fit)
        with Image.open(tmp_path / "out.png") as drawn:
            assert drawn.width < 1000 and drawn.height < 1500
        assert count == TokenCount(count.views, 576, None)


def test_a_drawing_shows_boxes_as_a_viewer_shows_the_image(tmp_path):
    upright = Image.new("RGB", (60, 40), (0, 0, 255))
    upright.paste((255, 0, 0), (35, 3, 50, 12))

    def drawn(orientation: int, left: int) -> bytes:
        (tmp_path / "in.png").write_bytes(stored_turned(upright, orientation))
        draw_file(tmp_path / "in.png", tmp_path / "out.png", regions=[[left, 3, left + 15, 12]])
        return (tmp_path / "out.png").read_bytes()

    assert drawn(1, 35) == drawn(6, 35) != drawn(6, 30)  # the last is a control


def test_a_drawing_counts_as_the_model_does(model_folder, model, processor, tmp_path):
    Image.new("RGB", (60, 40)).save(tmp_path / "in.png")
    count = draw_file(tmp_path / "in.png", tmp_path / "out.png", model_folder, [[0, 0, 9, 9]], view_strategy="grid")
    context = model.config.text_config.max_position_embeddings
    assert count == processor.count_tokens((40, 60), context, regions=[[0, 0, 9, 9]], view_strategy="grid")


@pytest.fixture
def views_of(tmp_path, capsys):
    """Runs the command on an image; returns what it printed."""

    def run(*options: str) -> str:
        Image.new("RGB", (60, 40)).save(tmp_path / "in.png")
        assert main(["views", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), *options]) == 0
        return capsys.readouterr().out

    return run


def test_the_command_prints_and_draws_what_each_of_several_encoders_gets(tmp_path, views_of):
    encoders = {"encoders": ["clip", "dinov2"], "image_sizes": [32, 48], "projector_type": "summation"}
    printed = views_of("--model", str(conversations.write_model(tmp_path / "two", **encoders)))
    assert "encoder 1, clip_vision_model: each view at 32 x 32 pixels, 16 tokens\n" in printed
    assert "encoder 2, dinov2: each view at 48 x 48 pixels, 36 tokens\n" in printed
    two = Image.open(tmp_path / "out.png").height
    assert "encoder" not in views_of("--model", str(conversations.write_model(tmp_path / "one")))
    assert two > Image.open(tmp_path / "out.png").height + draw_views.THUMB // 2  # a row of views of each


def test_the_command_counts_the_tokens_of_the_views_that_its_options_ask_for(views_of):
    regions = ["--region", "10,20,30,40", "--region", "1,2,16,7.5", "--max-regions", "1"]
    printed = views_of("--strategy", "grid", "--fit", "pad", "--context-length", "5000", *regions)
    assert "4 views x 576 + 2 marks = 2306 tokens, 46.1% of a context of 5000" in printed
    assert "1 view x 16 + 2 marks = 18 tokens" in views_of("--side", "64", "--tokens", "16")


def test_the_command_warns_of_an_image_that_does_not_fit_the_context(views_of):
    printed = views_of("--context-length", "578")  # one view and its marks
    assert "warning: this does not fit: 578 tokens and a question" in printed and "view_strategy" not in printed
    assert "warning" not in views_of("--context-length", "579")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    Image.new("RGB", (60, 40)).save(tmp_path / "in.png")
    (tmp_path / "out.png").write_bytes(b"before")
    monkeypatch.setattr(io.os, "replace", Mock(side_effect=OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        draw_file(tmp_path / "in.png", tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 2
