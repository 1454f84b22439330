"""robustness/perturbations.py: pure functions whose effect grows with their strength."""

import numpy as np
import pytest
import tiny

from omnifusion_hf.evaluation.robustness.perturbations import PERTURBATIONS


CHANGES = {name: entry for name, entry in PERTURBATIONS.items() if entry.apply}
RANDOM = {"noise", "crop", "rotation"}
WEAKEST = {"blur": 0, "noise": 0, "crop": 0, "rotation": 0, "small_text": 1}  # what leaves an image as it is


@pytest.fixture(scope="module")
def image():
    """Sharp edges on a smooth ground."""
    image = tiny.image(3, (90, 130))
    image.paste(tiny.image(4, (40, 50)), (45, 25))
    return image


def distance(a, b) -> float:
    return np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean()


@pytest.mark.parametrize("name", CHANGES)
def test_a_perturbation_is_a_pure_function_of_image_strength_and_seed_and_fits_an_image_of_one_pixel(name, image):
    before = image.tobytes()
    changed = [CHANGES[name].apply(image, CHANGES[name].strengths[1], seed) for seed in (5, 5, 6, 7, 8)]
    first, again, *others = (each.tobytes() for each in changed)
    assert image.tobytes() == before and first == again
    assert any(first != other for other in others) == (name in RANDOM)
    assert changed[0].size == image.size and changed[0].mode == "RGB"
    for strength in CHANGES[name].strengths:
        assert CHANGES[name].apply(tiny.image(0, (1, 1)), strength, 0).size == (1, 1)


@pytest.mark.parametrize("name", CHANGES)
def test_stronger_is_further_from_the_image(name, image):
    strengths = [strength for strength in CHANGES[name].strengths if (name, strength) != ("rotation", 90)]
    moved = [distance(image, CHANGES[name].apply(image, strength, 1)) for strength in strengths]
    assert moved[0] > 0 and moved == sorted(moved)
    assert name not in WEAKEST or distance(image, CHANGES[name].apply(image, WEAKEST[name], 1)) == 0


def test_corners_of_a_rotated_image_have_its_mean_colour(image):
    """Black corners, Pillow's default, would be a change of their own."""
    rotated = np.asarray(CHANGES["rotation"].apply(image, 45, 0))
    mean = np.asarray(image, dtype=float).mean((0, 1))
    for corner in (rotated[0, 0], rotated[0, -1], rotated[-1, 0], rotated[-1, -1]):
        assert np.abs(corner - mean).max() <= 1 < mean.min()


def test_the_unit_of_blur_is_the_images_own_size():
    """An image and its enlargement are blurred alike; the control is the same strength in pixels."""
    small = tiny.image(1, (60, 60))
    large = small.resize((240, 240))
    blurred = CHANGES["blur"].apply(small, 4, 0), CHANGES["blur"].apply(large, 4, 0).resize((60, 60))
    control = CHANGES["blur"].apply(large, 1, 0).resize((60, 60))
    assert distance(*blurred) < 0.5 * distance(blurred[0], control)
