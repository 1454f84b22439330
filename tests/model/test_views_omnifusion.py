"""Views: boxes of images of any size, for every fit and strategy."""

import numpy as np
import pytest

from omnifusion_hf.model.views_omnifusion import (
    best_canvas,
    clip_region,
    fit_inside,
    grid_views,
    image_views,
    region_views,
    regions_per_image,
    square_region,
    whole_view,
)


CANVASES = [[1, 2], [2, 1], [2, 2], [1, 3], [3, 1]]
SIDE = 32


# (height, width) from 1 to 400 pixels, thin ones included; huge ones
SIZES = np.exp(np.random.default_rng(0).uniform(0, np.log(400), (200, 2))).astype(int).tolist()
SIZES += [(4, 20_000), (20_000, 4), (1, 1), (10**6, 10**6), (1, 10**9)]


def test_boxes_are_these_numbers():
    size = (100, 200)
    assert whole_view(size, "crop", 50) == (50, 0, 150, 100)
    assert whole_view(size, "pad", 50) == (0, -48, 200, 152)
    assert whole_view(size, "squash", 50) == (0, 0, 200, 100)
    assert fit_inside((100, 300), (672, 672)) == (224, 672)
    assert best_canvas((400, 1300), CANVASES, side=336) == (1, 3)
    assert best_canvas((600, 600), CANVASES, side=336) == (2, 2)
    assert grid_views((100, 100), [[1, 2]], side=50) == [(-50, 0, 50, 100), (50, 0, 150, 100)]
    assert clip_region(size, (-3.5, 10.2, 20.0, 30.0)) == (0, 10, 20, 30)
    assert square_region(size, (50, 40, 70, 50), context=0.2) == (48, 33, 72, 57)
    assert square_region(size, (0, 0, 20, 10), context=0.2) == (0, 0, 24, 24)
    assert square_region(size, (0, 20, 150, 40), context=0.0) == (0, -25, 150, 125)


def test_between_the_whole_image_and_its_regions_tiles_cover_it_without_overlap():
    for size in SIZES:
        views = image_views(size, "grid", "crop", CANVASES, SIDE, [(1, 2, 3, 4)])
        whole, *tiles, region = views
        assert [whole, region] == [whole_view(size, "crop", SIDE), (1, 2, 3, 4)] and len(views) == len(tiles) + 2
        rows, columns = best_canvas(size, CANVASES, SIDE)
        assert len(tiles) == rows * columns
        grid = np.array(tiles).reshape(rows, columns, 4)
        np.testing.assert_allclose(grid[:, 1:, 0], grid[:, :-1, 2])  # a tile begins where its left neighbour ends
        np.testing.assert_allclose(grid[1:, :, 1], grid[:-1, :, 3])
        assert grid[0, 0, 0] <= 0 and grid[0, 0, 1] <= 0
        assert grid[-1, -1, 2] >= size[1] * (1 - 1e-12) and grid[-1, -1, 3] >= size[0] * (1 - 1e-12)


def test_the_best_canvas_shows_most_of_the_image():
    def shown(size, canvas):
        height, width = fit_inside(size, (canvas[0] * SIDE, canvas[1] * SIDE))
        return min(height * width, size[0] * size[1])

    for size in SIZES:
        best = best_canvas(size, CANVASES, SIDE)
        assert all(shown(size, best) >= shown(size, canvas) for canvas in CANVASES)


def test_bad_input_is_named():
    bad = {"0 x 5 pixels": ((0, 5), "whole", "crop"), "view_strategy `regions`": ((5, 5), "regions", "crop")}
    bad["image_fit `stretch`"] = ((5, 5), "whole", "stretch")
    for said, given in bad.items():
        with pytest.raises(ValueError, match=said):
            image_views(*given, CANVASES, SIDE)


def test_a_region_is_a_square_of_whole_pixels_that_shows_its_box_inside_the_image_or_centred_on_it():
    random = np.random.default_rng(0)
    for height, width in [(100, 200), (30, 7), (1, 1), (640, 48)]:
        boxes = np.sort(random.uniform(-0.3, 1.3, (500, 2, 2)) * [width, height], axis=1)  # many reach beyond
        touching = (boxes[:, 1] > 0.01).all(-1) & (boxes[:, 0] < [width - 0.01, height - 0.01]).all(-1)
        for box in boxes[touching].reshape(-1, 4)[:50].tolist():
            clipped = clip_region((height, width), tuple(box))
            for context in (0.0, 0.2, 1.0):
                left, top, right, bottom = square_region((height, width), clipped, context)
                side = right - left
                assert bottom - top == side == int(side) >= 1 and left == int(left) and top == int(top)
                assert left <= clipped[0] and top <= clipped[1] and right >= clipped[2] and bottom >= clipped[3]
                assert side == round((1 + context) * max(clipped[2] - clipped[0], clipped[3] - clipped[1]))
                for low, high, length in ((left, right, width), (top, bottom, height)):
                    assert low >= 0 and high <= length if side <= length else abs(low + high - length) <= 1


def test_regions_are_sorted_by_score_or_else_in_reading_order_and_capped():
    a, b, c = boxes = [(60.0, 50.0, 70.0, 60.0), (10.0, 10.0, 20.0, 20.0), (80.0, 10.0, 90.0, 20.0)]
    corners = [dict(zip(("xmin", "ymin", "xmax", "ymax"), box)) for box in boxes]
    detected = [{"score": score, "label": "x", "box": box} for score, box in zip((0.5, 0.2, 0.9), corners)]
    assert region_views((100, 100), boxes, 0.0, 9) == [b, c, a]
    for most, expected in ((9, [c, a, b]), (2, [c, a]), (0, [])):
        assert region_views((100, 100), detected, 0.0, most) == expected
    assert region_views((100, 100), [], 0.0, 9) == []


A, B = [0, 0, 9, 9], {"score": 1.0, "label": "x", "box": {"xmin": 0, "ymin": 0, "xmax": 5, "ymax": 5}}
BAD_BOXES = {
    "empty or reversed": [[10, 10, 10, 20], [10, 30, 20, 20]],
    # these touch its four edges
    "outside the image of 100 x 50": [[100, 0, 110, 10], [0, 50, 10, 60], [-10, 0, 0, 10], [0, -20, 10, 0]],
    "left and right times 100, top and bottom times 50": [[0.1, 0.2, 0.5, 1.0]],
    "not finite": [[0, 0, np.nan, 10], [0, 0, np.inf, 10], B | {"score": np.nan}],
    "is not a box": [[0, 0, 10], ["a", 0, 10, 10], B["box"]],
}


@pytest.mark.parametrize("said", BAD_BOXES)
def test_a_box_that_shows_nothing_is_named(said):
    assert len(region_views((50, 100), [A, A], 0.2, 4)) == 2
    for box in BAD_BOXES[said]:
        with pytest.raises(ValueError, match=f"box 1: .*{said}"):
            region_views((50, 100), [A, box], 0.2, 4)
    with pytest.raises(ValueError, match="some boxes have a score"):
        region_views((50, 100), [A, B], 0.2, 4)


NESTED = [([A, A], [1], [[A, A]]), ([B], [1], [[B]]), ([], [3], [[], [], []]), ([[], []], [], [])]
NESTED += [([[A], []], [2], [[A], []]), ([[A], [B, B]], [1, 1], [[A], [B, B]]), ([[], [[B]]], [0, 1], [[B]])]
NESTED += [([[[A], []], [[B]]], [2, 1], [[A], [], [B]]), (np.array([[A]]), [1], [[A]])]
NESTED += [((np.array([A, A]), np.zeros((0, 4))), [2], [[A, A], []])]
UNLIKE_IMAGES = [([A], [2]), ([[A]], [2]), ([[A], [A]], []), ([A], []), ([[[A], []], [[B]]], [1, 2]), (A, [1])]
UNLIKE_IMAGES += [("boxes", [1]), ([[[[A]]]], [1])]


@pytest.mark.parametrize("regions, images, expected", NESTED)
def test_regions_are_nested_as_images_are(regions, images, expected):
    assert regions_per_image(regions, images) == expected


@pytest.mark.parametrize("regions, images", UNLIKE_IMAGES)
def test_another_number_of_regions_than_of_images_raises(regions, images):
    with pytest.raises(ValueError, match="one (list|list of boxes) (of boxes )?per image"):
        regions_per_image(regions, images)
