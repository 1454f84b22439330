"""lab/world.py, canvas.py, scenes.py, glyphs.py: images follow from seeds alone and the splits share nothing."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.font_manager import fontManager
from matplotlib.mathtext import MathTextParser

from lab import canvas, glyphs, scenes, world


@pytest.mark.parametrize("kind", world.KINDS)
def test_an_image_follows_from_its_seed_and_splits_show_different_images(kind):
    first, again = (world.render("train", kind, 5) for _ in range(2))
    assert (first.image == again.image).all() and (first.labels == again.labels).all()
    assert first.facts == again.facts and first.marks == again.marks
    shown = [{world.render(split, kind, i).image.tobytes() for i in range(20)} for split in canvas.WORLD_SEED]
    # control: images within a split differ as well, so equality would be noticed
    assert len(set.union(*shown)) == 20 * len(shown)


def test_handwritten_digits_are_split_by_index():
    train, validation, test = (set(glyphs.digit_indices(split)) for split in ("train", "validation", "test"))
    assert not train & validation and not train & test and not validation & test
    assert len(train | validation | test) == 1797 and len(test) >= 500
    rngs = [canvas.sample_rng("test", "digit", i) for i in range(60)]
    assert {glyphs.render_digit(rng, "test").facts["index"] for rng in rngs} <= test


def test_formulas_of_the_test_never_occur_in_training():
    for split, held_out in (("train", False), ("validation", True), ("test", True)):
        drawn = [world.render(split, "formula", i).facts["latex"] for i in range(15)]
        assert {glyphs.is_held_out(latex) for latex in drawn} == {held_out}
    free = {glyphs.is_held_out(glyphs.sample_formula(canvas.sample_rng("train", "free", i))) for i in range(200)}
    assert free == {True, False}  # control: without the rule both kinds occur


def test_formulas_have_the_same_glyphs_whatever_fonts_matplotlib_knows(monkeypatch):
    right, latex = {"DejaVuSans.ttf", "DejaVuSans-Oblique.ttf"}, r"\sqrt{x}"
    glyphs.mathtext()  # other tests get the index that it leaves
    monkeypatch.setattr(fontManager, "ttflist", [])
    fontManager.addfont(glyphs.FONT_FOLDER / "DejaVuSans.ttf")  # an index without the others
    found = MathTextParser("path").parse(f"${latex}$").glyphs
    assert {Path(font.fname).name for font, *_ in found} == {"DejaVuSans.ttf"}  # control
    glyphs.mathtext.cache_clear()
    glyphs.lay_out.cache_clear()
    assert {Path(font).name for font, *_ in glyphs.lay_out(latex).glyphs} == right


def test_things_in_a_scene_do_not_overlap_and_labels_name_them():
    drawing = world.render("train", "scene", 3)
    for name, x, y in drawing.marks:
        assert canvas.CLASSES[drawing.labels[int(y) // canvas.CELL, int(x) // canvas.CELL]] == name
    for index in range(50):
        things = scenes.sample_things(canvas.sample_rng("train", "scene", index))
        assert 1 <= len(things) <= 5
        for a, b in combinations(things, 2):
            assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius


def test_all_ink_is_inside_the_image():
    """Ink that leaves the image would make a question unanswerable: the outermost pixels stay background."""
    for kind in ("text", "formula"):
        for index in range(40):
            image = world.render("train", kind, index).image
            edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
            assert (edge == edge[0]).all(), (kind, index)


def test_unknown_names_are_refused():
    for split, kind, wrong in (("train", "photo", "kind"), ("holdout", "scene", "split")):
        with pytest.raises(ValueError, match=f"{wrong} must be one of"):
            world.render(split, kind, 0)
