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
    views_per_image,
    whole_view,
)


CANVASES = [[1, 2], [2, 1], [2, 2], [1, 3], [3, 1]]
SIDE = 32


def random_sizes(count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Sizes (height, width) from 1 to 400 pixels, thin ones included."""
    sizes = np.exp(np.random.default_rng(seed).uniform(0, np.log(400), (count, 2)))
    return [(int(height), int(width)) for height, width in sizes]


@pytest.mark.parametrize(
    "found, expected",
    [
        (whole_view((100, 200), "crop", 50), (50, 0, 150, 100)),
        (whole_view((100, 200), "pad", 50), (0, -48, 200, 152)),
        (whole_view((100, 200), "squash", 50), (0, 0, 200, 100)),
        (fit_inside((100, 300), (672, 672)), (224, 672)),
        (best_canvas((400, 1300), CANVASES, side=336), (1, 3)),
        (best_canvas((600, 600), CANVASES, side=336), (2, 2)),
        (grid_views((100, 100), [[1, 2]], side=50), [(-50, 0, 50, 100), (50, 0, 150, 100)]),
        (clip_region((100, 200), (-3.5, 10.2, 20.0, 30.0)), (0, 10, 20, 30)),
        (square_region((100, 200), (50, 40, 70, 50), context=0.2), (48, 33, 72, 57)),
        (square_region((100, 200), (0, 0, 20, 10), context=0.2), (0, 0, 24, 24)),
        (square_region((100, 200), (0, 20, 150, 40), context=0.0), (0, -25, 150, 125)),
    ],
)
def test_boxes_are_these_numbers(found, expected):
    assert found == expected


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_the_whole_view_is_centred(fit):
    """Left and right (top and bottom) margins differ by less than two pixels of the view: the rounding of a crop."""
    for height, width in random_sizes(200):
        left, top, right, bottom = whole_view((height, width), fit, SIDE)
        pixel_x, pixel_y = (right - left) / SIDE, (bottom - top) / SIDE
        assert abs(left - (width - right)) < 2 * pixel_x
        assert abs(top - (height - bottom)) < 2 * pixel_y


def test_crop_stays_inside_and_pad_covers_everything():
    for size in random_sizes(200):
        height, width = size
        left, top, right, bottom = whole_view(size, "crop", SIDE)
        assert left >= 0 and top >= 0 and right <= width + 1e-9 and bottom <= height + 1e-9
        left, top, right, bottom = whole_view(size, "pad", SIDE)
        assert left <= 0 and top <= 0 and right >= width - 1e-9 and bottom >= height - 1e-9


def test_tiles_cover_the_image_without_overlap():
    for size in random_sizes(200):
        _, *tiles = image_views(size, "grid", "crop", CANVASES, SIDE)
        rows, columns = best_canvas(size, CANVASES, SIDE)
        assert len(tiles) == rows * columns
        grid = np.array(tiles).reshape(rows, columns, 4)
        np.testing.assert_allclose(grid[:, 1:, 0], grid[:, :-1, 2])  # a tile begins where its left neighbour ends
        np.testing.assert_allclose(grid[1:, :, 1], grid[:-1, :, 3])
        assert grid[0, 0, 0] <= 0 and grid[0, 0, 1] <= 0
        assert grid[-1, -1, 2] >= size[1] - 1e-9 and grid[-1, -1, 3] >= size[0] - 1e-9


def test_the_best_canvas_shows_most_of_the_image():
    def shown(size, canvas):
        height, width = fit_inside(size, (canvas[0] * SIDE, canvas[1] * SIDE))
        return min(height * width, size[0] * size[1])

    for size in random_sizes(200):
        best = best_canvas(size, CANVASES, SIDE)
        assert all(shown(size, best) >= shown(size, canvas) for canvas in CANVASES)


def test_the_whole_image_is_the_first_view_of_a_grid():
    whole = image_views((50, 70), "whole", "pad", CANVASES, SIDE)
    assert image_views((50, 70), "grid", "pad", CANVASES, SIDE).whole == whole.whole


def test_views_of_huge_and_thin_images_are_bounded():
    largest = 1 + max(rows * columns for rows, columns in CANVASES)
    for size in [(4, 20_000), (20_000, 4), (1, 1), (10**6, 10**6), (1, 10**9)]:
        assert len(image_views(size, "grid", "crop", CANVASES, SIDE)) <= largest


@pytest.mark.parametrize(
    "size, strategy, fit, said",
    [
        ((0, 5), "whole", "crop", "0 x 5 pixels"),
        ((5, 5), "tiles", "crop", "view_strategy `tiles`"),
        ((5, 5), "whole", "stretch", "image_fit `stretch`"),
    ],
)
def test_bad_input_is_named(size, strategy, fit, said):
    with pytest.raises(ValueError, match=said):
        image_views(size, strategy, fit, CANVASES, SIDE)


def test_views_per_image_reads_back_what_was_counted():
    counts = [1, 3, 1, 5]
    assert views_per_image([index for count in counts for index in range(count)]) == counts


def random_boxes(size: tuple[int, int], count: int, seed: int = 0) -> list[tuple]:
    """Boxes that touch an image, many of them reaching beyond it."""
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(-0.3, 1.3, (10 * count, 2, 2)) * (size[1], size[0])
    boxes = np.sort(boxes, axis=1)
    touching = (boxes[:, 1] > 0.01).all(-1) & (boxes[:, 0] < np.array([size[1], size[0]]) - 0.01).all(-1)
    return [tuple(box.ravel().tolist()) for box in boxes[touching][:count]]


def test_a_region_is_a_square_of_whole_pixels_that_shows_its_box():
    for size in [(100, 200), (30, 7), (1, 1), (640, 48)]:
        for box in random_boxes(size, 50):
            clipped = clip_region(size, box)
            for context in (0.0, 0.2, 1.0):
                left, top, right, bottom = square_region(size, clipped, context)
                side = right - left
                assert bottom - top == side == int(side) >= 1 and left == int(left) and top == int(top)
                assert left <= clipped[0] and top <= clipped[1] and right >= clipped[2] and bottom >= clipped[3]
                assert side == round((1 + context) * max(clipped[2] - clipped[0], clipped[3] - clipped[1]))


def test_a_region_stays_inside_the_image_where_its_square_fits_and_is_centred_on_it_where_not():
    height, width = 100, 200
    for box in random_boxes((height, width), 200):
        left, top, right, bottom = square_region((height, width), clip_region((height, width), box), 0.2)
        for low, high, length in ((left, right, width), (top, bottom, height)):
            if high - low <= length:
                assert low >= 0 and high <= length
            else:
                assert abs(low + high - length) <= 1


def test_regions_are_sorted_by_score_or_else_in_reading_order_and_capped():
    boxes = [[60, 50, 70, 60], [10, 10, 20, 20], [80, 10, 90, 20]]
    detected = [
        {"score": score, "label": "x", "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box))}
        for score, box in zip((0.5, 0.2, 0.9), boxes)
    ]
    squares = [tuple(map(float, box)) for box in boxes]
    assert region_views((100, 100), boxes, 0.0, 9) == [squares[1], squares[2], squares[0]]
    assert region_views((100, 100), detected, 0.0, 9) == [squares[2], squares[0], squares[1]]
    assert region_views((100, 100), detected, 0.0, 2) == [squares[2], squares[0]]
    assert region_views((100, 100), detected, 0.0, 0) == region_views((100, 100), [], 0.0, 9) == []


@pytest.mark.parametrize(
    "box, said",
    [
        ([10, 10, 10, 20], "empty or reversed"),
        ([10, 30, 20, 20], "empty or reversed"),
        ([200, 0, 210, 10], "outside the image of 100 x 50"),
        ([0, -20, 10, 0], "outside the image"),
        ([0.1, 0.2, 0.5, 1.0], "left and right times 100, top and bottom times 50"),
        ([0, 0, float("nan"), 10], "not finite"),
        ([0, 0, float("inf"), 10], "not finite"),
        ([0, 0, 10], "is not a box"),
        (["a", 0, 10, 10], "is not a box"),
        ({"xmin": 0, "ymin": 0, "xmax": 5, "ymax": 5}, "is not a box"),
        ({"score": float("nan"), "box": {"xmin": 0, "ymin": 0, "xmax": 5, "ymax": 5}}, "not finite"),
        ({"score": 0.5, "box": {"xmin": 0, "ymin": 0, "xmax": 5, "ymax": 5}}, "some boxes have a score"),
    ],
)
def test_a_box_that_shows_nothing_is_named(box, said):
    good = [[0, 0, 10, 10]]
    assert len(region_views((50, 100), good * 2, 0.2, 4)) == 2
    with pytest.raises(ValueError, match=said) as raised:
        region_views((50, 100), good + [box], 0.2, 4)
    assert "box 1: " in str(raised.value) or "some boxes" in said


def test_tiles_and_regions_come_after_the_whole_image():
    regions = region_views((50, 70), [[0, 0, 9, 9]], 0.2, 4)
    views = image_views((50, 70), "grid", "pad", CANVASES, SIDE, regions)
    assert list(views) == [views.whole, *views.tiles, *regions] and len(views) == len(list(views)) == 6
    assert views.tiles == image_views((50, 70), "grid", "pad", CANVASES, SIDE).tiles


A, B = [0, 0, 9, 9], {"score": 1.0, "label": "x", "box": {"xmin": 0, "ymin": 0, "xmax": 5, "ymax": 5}}


@pytest.mark.parametrize(
    "regions, images, expected",
    [
        ([A, A], [1], [[A, A]]),
        ([B], [1], [[B]]),
        ([], [3], [[], [], []]),
        ([[], []], [], []),
        ([[A], []], [2], [[A], []]),
        ([[A], [B, B]], [1, 1], [[A], [B, B]]),
        ([[[A], []], [[B]]], [2, 1], [[A], [], [B]]),
        ([[], [[B]]], [0, 1], [[B]]),
        ((np.array([A, A]), np.zeros((0, 4))), [2], [[A, A], []]),
        (np.array([[A]]), [1], [[A]]),
    ],
)
def test_regions_are_nested_as_images_are(regions, images, expected):
    assert regions_per_image(regions, images) == expected


@pytest.mark.parametrize(
    "regions, images",
    [
        ([A], [2]),
        ([[A]], [2]),
        ([[A], [A]], []),
        ([A], []),
        ([[[A], []], [[B]]], [1, 2]),
        (A, [1]),
        ("boxes", [1]),
        ([[[[A]]]], [1]),
    ],
)
def test_another_number_of_regions_than_of_images_raises(regions, images):
    with pytest.raises(ValueError, match="one (list|list of boxes) (of boxes )?per image"):
        regions_per_image(regions, images)
