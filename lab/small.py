"""Small things on large images: 384 x 384 pixels with one word, or one to four shapes, of about half the size as
elsewhere in the miniature world. At 96 x 96 as a whole they are a few pixels high.

The facts include the boxes of words and shapes, as from a perfect detector.
"""

from random import Random

import numpy as np
from PIL import Image, ImageDraw

from .canvas import COLOURS, Drawing, ink_and_paper, jitter, sample_rng
from .evaluate import Example, balanced
from .glyphs import FONTS, font_of, sample_text
from .questions import Turn, ask, attribute_turns, count_turns, few
from .scenes import Thing, mask_of, sample_things


LARGE_SIDE = 384
FONT_SIZES = (36, 56)
RADII = (12, 18)
MOST_THINGS = 4
TEXT_LENGTHS = (1, 2, 3)
TEXT_TOPICS = {f"small text, {n} character{'s' if n > 1 else ''}": n for n in TEXT_LENGTHS}
SCENE_TOPICS = {"small colour": "colour", "small shape": "shape", "small count": "count"}
TOPICS = (*SCENE_TOPICS, *TEXT_TOPICS)


def render_small(split: str, kind: str, index: int, length: int | None = None) -> Drawing:
    """Image `index` of kind "text" (`length` fixes its characters) or "scene"; `ValueError` for another kind."""
    rng = sample_rng(split, f"small {kind}", index)
    if kind == "text":
        return _render_text(rng, length or rng.choice(TEXT_LENGTHS))
    if kind == "scene":
        return _draw_scene(rng, sample_things(rng, MOST_THINGS, LARGE_SIDE, *RADII))
    raise ValueError(f"kind must be 'text' or 'scene', got {kind!r}")


def _render_text(rng: Random, length: int) -> Drawing:
    text = sample_text(rng, length)
    font = font_of(rng.choice(FONTS), rng.randint(*FONT_SIZES))
    left, top, right, bottom = font.getbbox(text, anchor="ls")
    x = rng.uniform(4 - left, LARGE_SIDE - 4 - right)
    y = rng.uniform(4 - top, LARGE_SIDE - 4 - bottom)
    ink, ground = ink_and_paper(rng)
    image = Image.new("RGB", (LARGE_SIDE, LARGE_SIDE), ground)
    ImageDraw.Draw(image).text((x, y), text, ink, font, anchor="ls")
    facts = {"text": text, "what": "number" if text.isdigit() else "word"}
    return _drawing("text", image, facts, [(x + left, y + top, x + right, y + bottom)])


def _draw_scene(rng: Random, things: list[Thing]) -> Drawing:
    pale = rng.randint(205, 255)
    image = Image.new("RGB", (LARGE_SIDE, LARGE_SIDE), jitter(rng, (pale, pale, pale), 12))
    for thing in things:
        mask = mask_of(thing.shape, thing.radius, rng.randrange(-10, 11, 2))
        image.paste(
            jitter(rng, COLOURS[thing.colour], 14), (thing.x - mask.width // 2, thing.y - mask.height // 2), mask
        )
    boxes = [(t.x - t.radius, t.y - t.radius, t.x + t.radius, t.y + t.radius) for t in things]
    return _drawing("scene", image, {"things": things}, boxes)


def _drawing(kind: str, image: Image.Image, facts: dict, boxes: list[tuple]) -> Drawing:
    """A drawing without a label map, which only encoder pretraining needs."""
    boxes = [[round(float(v), 1) for v in box] for box in boxes]
    return Drawing(kind, np.asarray(image), np.zeros((0, 0), np.uint8), facts | {"boxes": boxes}, [])


def conversation_about(rng: Random, drawing: Drawing) -> list[Turn]:
    """The written text; or all unambiguous colours and shapes, then two counts."""
    facts = drawing.facts
    if drawing.kind == "text":
        return [ask(rng, facts["what"], facts["text"])]
    turns, known = [], set()
    for turn in few(rng, attribute_turns(rng, facts["things"]), 8):
        if not known & set(turn.about):
            turns.append(turn)
            known |= set(turn.about)
    return turns + few(rng, count_turns(rng, facts["things"]), 2)


def small_examples(split: str, topic: str, count: int, regions: bool = False) -> list[Example]:
    """The first `count` examples of a topic, like lab.evaluate.examples; with `regions` their boxes become views."""
    found, index = [], 0
    while len(found) < count:
        kind = "text" if topic in TEXT_TOPICS else "scene"
        drawing = render_small(split, kind, index, TEXT_TOPICS.get(topic))
        rng = sample_rng(split, f"questions about {topic}", index)
        turns = _turns(rng, drawing, topic)
        drawing.facts["regions"] = drawing.facts["boxes"] if regions else []
        if turns:
            turn = rng.choice(turns)
            found.append(Example(drawing, turn.question, turn.answer))
        index += 1
    return found


def _turns(rng: Random, drawing: Drawing, topic: str) -> list[Turn]:
    if topic in TEXT_TOPICS:
        return conversation_about(rng, drawing)
    if topic == "small count":
        return balanced(rng, count_turns(rng, drawing.facts["things"]))
    return [t for t in attribute_turns(rng, drawing.facts["things"]) if t.topic == SCENE_TOPICS[topic]]
