"""Questions and answers about a drawing, from its facts. Pretraining, training and evaluation share the wording."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from random import Random

from .canvas import COLOURS, SHAPES, SIDE, Drawing
from .scenes import Thing


TEMPLATES = {
    "colour": ("What colour is the {0}?", "What color is the {0}?", "Which colour does the {0} have?"),
    "shape": ("What shape is {0}?", "Which shape is {0}?", "What is the shape of the {0} object?"),
    "count": ("How many {0} are there?", "How many {0} do you see?", "Count the {0}."),
    "place": ("Where is the {0}?", "In which part of the picture is the {0}?"),
    "position": ("Where is the {0} relative to the {1}?", "On which side of the {1} is the {0}?"),
    "caption": ("Describe the picture.", "What is in the picture?", "What do you see?"),
    "caption downwards": ("Describe the picture from top to bottom.",),
    "digit": ("Which digit is shown?", "What digit is this?", "Which handwritten digit do you see?"),
    "word": ("What word is written?", "Which word do you see?", "Read the word."),
    "number": ("What number is written?", "Which number do you see?", "Read the number."),
    "formula": ("What is the formula in LaTeX?", "Write the formula in LaTeX.", "Read the formula."),
}
SIDES = ("left", "right", "above", "below")
_UNCLEAR = 6  # pixels on either side of a border within which there are no questions about places
MOST_OF = {"colour": 3, "shape": 1, "count": 2, "place": 2, "position": 2}
_CLEARLY = 1.4  # ratio of the larger offset to the smaller one from which a side is clear


@dataclass(frozen=True)
class Turn:
    """One question with its answer; `topic` is a key of TEMPLATES."""

    topic: str
    question: str
    answer: str
    about: tuple[str, ...] = ()  # names of the things that it mentions or reveals


def ask(rng: Random, topic: str, answer: str, *names: str, about: tuple[str, ...] = ()) -> Turn:
    return Turn(topic, rng.choice(TEMPLATES[topic]).format(*names), answer, about)


def side(a: Thing, b: Thing) -> str | None:
    """The side of `b` on which `a` is; None if neither axis is clear."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) >= _CLEARLY * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) >= _CLEARLY * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def place(thing: Thing) -> str | None:
    """The ninth of the image in which it is: "top left", "middle", "bottom"; None near a border between two."""
    if any(min(abs(v - SIDE / 3), abs(v - 2 * SIDE / 3)) < _UNCLEAR for v in (thing.x, thing.y)):
        return None
    row, column = (("top", "", "bottom")[thing.y * 3 // SIDE], ("left", "", "right")[thing.x * 3 // SIDE])
    return " ".join(filter(None, (row, column))) or "middle"


def caption(things: list[Thing], axis: str = "x") -> str:
    """From left to right, or from top to bottom (`axis` "y"): "a red square, a blue circle and a green star"."""
    names = [f"{'an' if t.name[0] == 'o' else 'a'} {t.name}" for t in sorted(things, key=lambda t: getattr(t, axis))]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def attribute_turns(rng: Random, things: list[Thing]) -> list[Turn]:
    """Colour and shape questions that have one right answer."""
    shapes, colours = Counter(t.shape for t in things), Counter(t.colour for t in things)
    turns = [ask(rng, "colour", t.colour, t.shape, about=(t.name,)) for t in things if shapes[t.shape] == 1]
    return turns + [ask(rng, "shape", t.shape, t.colour, about=(t.name,)) for t in things if colours[t.colour] == 1]


def plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def count_turns(rng: Random, things: list[Thing]) -> list[Turn]:
    """Counts of all things, of each colour and shape in the scene, and of a random colour and shape (perhaps 0)."""
    counts = Counter(plural(t.shape) for t in things) + Counter(f"{t.colour} objects" for t in things)
    absent = {plural(rng.choice(SHAPES)), f"{rng.choice(list(COLOURS))} objects"}.difference(counts)
    names = ["objects", *counts, *sorted(absent)]
    counts["objects"] = len(things)
    return [ask(rng, "count", str(counts[name]), name) for name in names]


def unique_things(things: list[Thing]) -> list[Thing]:
    return [t for t in things if [u.name for u in things].count(t.name) == 1]


def place_turns(rng: Random, things: list[Thing]) -> list[Turn]:
    """Places of things named by colour and shape, and of things whose shape is unique."""
    full = [(t.name, (t.name,), place(t)) for t in unique_things(things)]
    shapes = Counter(t.shape for t in things)
    by_shape = [(t.shape, (), place(t)) for t in things if shapes[t.shape] == 1]
    return [ask(rng, "place", where, name, about=about) for name, about, where in full + by_shape if where]


def position_turns(rng: Random, things: list[Thing]) -> list[Turn]:
    pairs = [(a, b, side(a, b)) for a, b in permutations(unique_things(things), 2)]
    return [ask(rng, "position", s, a.name, b.name, about=(a.name, b.name)) for a, b, s in pairs if s]


def caption_turn(rng: Random, things: list[Thing]) -> Turn:
    topic, axis = rng.choice((("caption", "x"), ("caption downwards", "y")))
    return ask(rng, topic, caption(things, axis))


def scene_turns(rng: Random, things: list[Thing], most: int = 7) -> list[Turn]:
    """Up to `most` turns, none answered by an earlier one; a quarter of conversations ends with a caption."""
    if rng.random() < 0.12:
        return [caption_turn(rng, things)]
    turns = [f(rng, things) for f in (attribute_turns, count_turns, place_turns, position_turns)]
    by_shape = rng.random() < 0.5  # look-up by shape is learnt last and needs most examples
    most_of = {"colour": 5, "position": 2} if by_shape else MOST_OF
    chosen = [t for topic, n in most_of.items() for t in few(rng, [t for t in sum(turns, []) if t.topic == topic], n)]
    chosen = chosen or few(rng, count_turns(rng, things), 2)
    rng.shuffle(chosen)
    turns, known = [], set()
    for turn in chosen[:most]:
        if turn.topic not in ("colour", "shape") or not known & set(turn.about):
            turns.append(turn)
            known |= set(turn.about)
    return [*turns, caption_turn(rng, things)] if rng.random() < 0.25 else turns


def look_up_turns(rng: Random, things: list[Thing]) -> list[Turn]:
    """First the colour of each thing with a unique shape, then some other turns: teaches look-up by shape.

    Some conversations are a caption or end with one, because the model forgets captions otherwise.
    """
    if rng.random() < 0.12:
        return [caption_turn(rng, things)]
    colours = [turn for turn in attribute_turns(rng, things) if turn.topic == "colour"]
    rng.shuffle(colours)
    others = [turn for turns in (count_turns, place_turns, position_turns) for turn in few(rng, turns(rng, things), 2)]
    rng.shuffle(others)
    captions = [caption_turn(rng, things)] if rng.random() < 0.5 else []
    return colours[:5] + others + captions


def relation_turns(rng: Random, things: list[Thing]) -> list[Turn]:
    """Mostly captions and relative positions, which need all things of a scene, and one question of other topics."""
    if rng.random() < 0.4:
        return [caption_turn(rng, things)]
    makers = (attribute_turns, count_turns, place_turns)
    others = [turn for maker in makers for turn in few(rng, maker(rng, things), 1)]
    positions = few(rng, position_turns(rng, things), 4)
    captions = [caption_turn(rng, things)] if rng.random() < 0.5 else []
    return others + positions + captions


def closing_turns(rng: Random, things: list[Thing]) -> list[Turn]:
    """Of both kinds of conversations that teach what is learnt last."""
    return rng.choice((look_up_turns, relation_turns))(rng, things)


def few(rng: Random, turns: list[Turn], most: int) -> list[Turn]:
    """At most `most` of the turns; counts above 1, which are rare, are preferred."""
    return sorted(turns, key=lambda turn: rng.random() - 0.3 * (turn.answer in "2345"))[:most]


SceneTurns = Callable[[Random, list[Thing]], list[Turn]]


def conversation(rng: Random, drawing: Drawing, about_scene: SceneTurns = scene_turns) -> list[Turn]:
    facts = drawing.facts
    if drawing.kind == "scene":
        return about_scene(rng, facts["things"])
    if drawing.kind == "text":
        return [ask(rng, facts["what"], facts["text"])]
    if drawing.kind == "digit":
        return [ask(rng, "digit", facts["digit"])]
    return [ask(rng, "formula", facts["latex"])]
