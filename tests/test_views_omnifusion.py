"""Views: boxes of pictures of any size, for every fit and strategy."""

import doctest

import numpy as np
import pytest

from omnifusion_hf import views_omnifusion
from omnifusion_hf.views_omnifusion import best_canvas, fit_inside, picture_views, views_per_image, whole_view


CANVASES = [[1, 2], [2, 1], [2, 2], [1, 3], [3, 1]]
SIDE = 32


def random_sizes(count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Sizes (height, width) from 1 to 400 pixels, thin ones included."""
    sizes = np.exp(np.random.default_rng(seed).uniform(0, np.log(400), (count, 2)))
    return [(int(height), int(width)) for height, width in sizes]


def test_examples_in_docstrings_hold():
    failed, attempted = doctest.testmod(views_omnifusion)
    assert failed == 0 and attempted >= 8


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


def test_tiles_cover_the_picture_without_overlap():
    for size in random_sizes(200):
        _, *tiles = picture_views(size, "grid", "crop", CANVASES, SIDE)
        rows, columns = best_canvas(size, CANVASES, SIDE)
        assert len(tiles) == rows * columns
        grid = np.array(tiles).reshape(rows, columns, 4)
        np.testing.assert_allclose(grid[:, 1:, 0], grid[:, :-1, 2])  # a tile begins where its left neighbour ends
        np.testing.assert_allclose(grid[1:, :, 1], grid[:-1, :, 3])
        assert grid[0, 0, 0] <= 0 and grid[0, 0, 1] <= 0
        assert grid[-1, -1, 2] >= size[1] - 1e-9 and grid[-1, -1, 3] >= size[0] - 1e-9


def test_the_best_canvas_shows_most_of_the_picture():
    def shown(size, canvas):
        height, width = fit_inside(size, (canvas[0] * SIDE, canvas[1] * SIDE))
        return min(height * width, size[0] * size[1])

    for size in random_sizes(200):
        best = best_canvas(size, CANVASES, SIDE)
        assert all(shown(size, best) >= shown(size, canvas) for canvas in CANVASES)


def test_the_whole_picture_is_the_first_view_of_a_grid():
    whole = picture_views((50, 70), "whole", "pad", CANVASES, SIDE)
    assert picture_views((50, 70), "grid", "pad", CANVASES, SIDE).whole == whole.whole


def test_case_15_views_of_huge_and_thin_pictures_are_bounded():
    largest = 1 + max(rows * columns for rows, columns in CANVASES)
    for size in [(4, 20_000), (20_000, 4), (1, 1), (10**6, 10**6), (1, 10**9)]:
        assert len(picture_views(size, "grid", "crop", CANVASES, SIDE)) <= largest


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
        picture_views(size, strategy, fit, CANVASES, SIDE)


def test_views_per_image_reads_back_what_was_counted():
    counts = [1, 3, 1, 5]
    assert views_per_image([index for count in counts for index in range(count)]) == counts
