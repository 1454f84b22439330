"""Regions: boxes of a caller or a detector become views; what they show, where they stand, what they cost."""

from functools import partial
from io import BytesIO

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from pixels import BACKGROUND, SIDE, channels_first, levels, noise, processor, stored_turned
from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor, pipeline


def test_a_region_is_cut_from_the_images_own_pixels():
    """Not from the whole view: a region of S x S pixels without context is the image's pixels, unchanged."""
    for image in (image for image in noise(60) if min(image.size) > SIDE):
        left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 3
        box = (left, top, left + SIDE, top + SIDE)
        _, region = levels(image, regions=[[box]], region_context=0.0)
        np.testing.assert_array_equal(region, channels_first(image.crop(box)))


def test_a_region_wider_than_the_image_is_high_is_padded():
    image = Image.new("RGB", (120, 20), (255, 0, 0))
    _, region = levels(image, regions=[[(0, 0, 120, 20)]], region_context=0.0)
    assert region[:, 0, 0].tolist() == region[:, -1, -1].tolist() == list(BACKGROUND)
    assert region[:, SIDE // 2, SIDE // 2].tolist() == [255, 0, 0]


def test_slivers_and_boxes_of_one_pixel_have_a_view():
    for size, box in [((500, 1), [0, 0, 1, 500]), ((1, 500), [0, 0, 500, 1]), ((9, 9), [8.2, 8.2, 8.3, 8.3])]:
        assert np.isfinite(levels(tiny.image(size=size), regions=[[box]])).all()


def test_views_are_whole_then_tiles_then_regions():
    images, regions = [tiny.image(0, (40, 90)), tiny.image(1, (50, 50))], [[(3, 3, 20, 20), (30, 3, 70, 30)], []]
    both = processor(view_strategy="grid")(images, regions=regions, return_tensors="pt")
    first = both.image_view_index.tolist().index(0, 1)
    views, alone = levels(images, view_strategy="grid", regions=regions), levels(images, regions=regions)[1:3]
    np.testing.assert_array_equal(np.delete(views, [first - 2, first - 1], 0), levels(images, view_strategy="grid"))
    np.testing.assert_array_equal(views[first - 2 : first], alone)
    assert (alone[0] != alone[1]).any()


def test_max_regions_caps_the_views_of_each_image_and_a_bad_box_is_named_by_its_image():
    image, boxes = tiny.image(size=(60, 60)), [(i, i, i + 9, i + 9) for i in range(20)]
    assert len(levels(image, regions=[boxes])) == 1 + processor().max_regions
    assert len(levels(image, regions=[boxes], max_regions=7)) == 8
    with pytest.raises(ValueError, match="Regions of image 1, box 2"):
        levels([image, image], regions=[boxes, [*boxes[:2], (9, 0, 5, 5)]])


def test_output_of_a_detection_pipeline_is_taken_as_it_is():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = YolosConfig(**sizes, image_size=[64, 64], patch_size=16, num_detection_tokens=3, num_labels=2)
    ours = YolosImageProcessor(size={"height": 64, "width": 64})
    detect = pipeline("object-detection", YolosForObjectDetection(config), image_processor=ours)
    images = [tiny.image(0), tiny.image(1)]
    found = detect(images, threshold=0.0)
    ranked = [sorted(boxes, key=lambda box: -box["score"]) for boxes in found]
    views = [levels(image, regions=[box])[1] for image, boxes in zip(images, ranked) for box in boxes]
    np.testing.assert_array_equal(np.delete(levels(images, regions=found), [0, 4], 0), views)
    np.testing.assert_array_equal(levels(images[0], regions=found[0])[1:], views[:3])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_regions_are_in_pixels_of_the_image_as_a_viewer_shows_it(orientation):
    upright, regions = tiny.image(size=(40, 60)), [[[35, 3, 50, 12]]]
    data = stored_turned(upright, orientation)
    for given in (data, Image.open(BytesIO(data))):
        np.testing.assert_array_equal(levels(given, regions=regions), levels(upright, regions=regions))
    if orientation > 1:  # control: the stored pixels show something else there
        stored = Image.fromarray(np.asarray(Image.open(BytesIO(data))))
        assert (levels(stored, regions=[[[20, 3, 35, 12]]])[1] != levels(upright, regions=regions)[1]).any()


BOXES = [[(0, 0, 9, 9), (20, 3, 40, 20)], [], [(0, 0, 5, 5)]]


def same(first, second) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_images_and_regions_go_to_the_processor_nested_flat_among_the_image_options_or_in_chats():
    images = [tiny.image(seed, size) for seed, size in enumerate([(40, 60), (7, 5), (33, 200)])]
    text, nested = ["<image><image> both?", "none?", "<image> one?"], [images[:2], [], images[2:]]
    processor = tiny.processor(tiny.config())
    ours = partial(processor, text=text, padding=True, return_tensors="pt")
    flat = ours(images=images, regions=BOXES)
    assert flat.image_view_index.tolist() == [0, 1, 2, 0, 0, 1]
    assert same(flat, ours(images=nested, regions=[BOXES[:2], [], BOXES[2:]]))
    assert same(flat, ours(images=nested, regions=BOXES))
    assert same(flat, ours(images=images, images_kwargs={"regions": BOXES}))
    other = ours(images=images, regions=BOXES[::-1])
    assert other.image_view_index.tolist() == [0, 1, 0, 0, 1, 2]  # control: boxes belong to their image
    assert not same(ours(images=images), ours(images=images[::-1]))
    assert "pixel_values" not in ours(text=["Hi"] * 2, regions=[[], []])  # a batch without images and boxes
    for given in ({"text": ["Hi"], "images": None}, {"images": nested}):
        with pytest.raises(ValueError, match="lists of regions for"):
            ours(**given, regions=BOXES[:2])
    chat = [tiny.user(images[0], "What?"), tiny.assistant("A sky."), tiny.user(images[2], "And this?")]
    flat = tiny.prompt(processor, *chat, processor_kwargs={"regions": BOXES[::2]})  # no batch
    nested = tiny.prompt(processor, chat, processor_kwargs={"regions": [BOXES[::2]]})
    assert flat.image_view_index.tolist() == [0, 1, 2, 0, 1] and same(flat, nested)
    single = tiny.prompt(processor, chat[0], processor_kwargs={"regions": BOXES[0]})
    assert single.image_view_index.tolist() == [0, 1, 2]
