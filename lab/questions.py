"""Questions and answers about a picture, from its facts. One wording serves text pretraining, training and
evaluation.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import permutations
from random import Random

from .canvas import COLOURS, SHAPES, Picture
from .scenes import Thing


TEMPLATES = {
    "colour": ("What colour is the {0}?", "What color is the {0}?", "Which colour does the {0} have?"),
    "shape": ("What shape is {0}?", "Which shape is {0}?", "What is the shape of the {0} object?"),
    "count": ("How many {0} are there?", "How many {0} do you see?", "Count the {0}."),
    "position": ("Where is the {0} relative to the {1}?", "On which side of the {1} is the {0}?"),
    "caption": ("Describe the picture.", "What is in the picture?", "What do you see?"),
    "digit": ("Which digit is shown?", "What digit is this?", "Which handwritten digit do you see?"),
    "word": ("What word is written?", "Which word do you see?", "Read the word."),
    "number": ("What number is written?", "Which number do you see?", "Read the number."),
    "formula": ("What is the formula in LaTeX?", "Write the formula in LaTeX.", "Read the formula."),
}
SIDES = ("left", "right", "above", "below")
_CLEARLY = 1.4  # how many times the larger offset must exceed the smaller before one side is the answer


@dataclass(frozen=True)
class Turn:
    """One question with its answer; `topic` is a key of TEMPLATES."""

    topic: str
    question: str
    answer: str
    about: tuple[str, ...] = ()  # names of the things it mentions or gives away


def ask(rng: Random, topic: str, answer: str, *names: str, about: tuple[str, ...] = ()) -> Turn:
    return Turn(topic, rng.choice(TEMPLATES[topic]).format(*names), answer, about)


def side(a: Thing, b: Thing) -> str | None:
    """Where `a` is as seen from `b`; None when neither axis clearly wins."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) >= _CLEARLY * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) >= _CLEARLY * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def caption(things: list[Thing]) -> str:
    """From left to right: "a red square, a blue circle and a green star"."""
    names = [f"{'an' if t.name[0] == 'o' else 'a'} {t.name}" for t in sorted(things, key=lambda t: t.x)]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def attribute_turns(rng: Random, things: list[Thing]) -> list[Turn]:
    """Colour and shape questions that have one right answer."""
    shapes, colours = Counter(t.shape for t in things), Counter(t.colour for t in things)
    turns = [ask(rng, "colour", t.colour, t.shape, about=(t.name,)) for t in things if shapes[t.shape] == 1]
    return turns + [ask(rng, "shape", t.shape, t.colour, about=(t.name,)) for t in things if colours[t.colour] == 1]


def plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def count_turns(rng: Random, things: list[Thing]) -> list[Turn]:
    """How many in all, of each colour and shape there is, and of one of each there may be none of."""
    counts = Counter(plural(t.shape) for t in things) + Counter(f"{t.colour} objects" for t in things)
    absent = {plural(rng.choice(SHAPES)), f"{rng.choice(list(COLOURS))} objects"}.difference(counts)
    asked = ["objects", *counts, *sorted(absent)]
    counts["objects"] = len(things)
    return [ask(rng, "count", str(counts[name]), name) for name in asked]


def position_turns(rng: Random, things: list[Thing]) -> list[Turn]:
    unique = [t for t in things if [u.name for u in things].count(t.name) == 1]
    pairs = [(a, b, side(a, b)) for a, b in permutations(unique, 2)]
    return [ask(rng, "position", s, a.name, b.name, about=(a.name, b.name)) for a, b, s in pairs if s]


def scene_turns(rng: Random, things: list[Thing], most: int = 5) -> list[Turn]:
    """Up to `most` turns, none of which an earlier one has answered; a caption closes a quarter of them."""
    if rng.random() < 0.12:
        return [ask(rng, "caption", caption(things))]
    attributes, counts, positions = (f(rng, things) for f in (attribute_turns, count_turns, position_turns))
    counts.sort(
        key=lambda t: rng.random() - 0.3 * (t.answer not in "01")
    )  # counts above 1 are rare: ask them more often
    chosen = (
        rng.sample(attributes, min(3, len(attributes))) + counts[:2] + rng.sample(positions, min(3, len(positions)))
    )
    rng.shuffle(chosen)
    turns, known = [], set()
    for turn in chosen[:most]:
        if turn.topic in ("position", "count") or not known & set(turn.about):
            turns.append(turn)
            known |= set(turn.about)
    return [*turns, ask(rng, "caption", caption(things))] if rng.random() < 0.25 else turns


def conversation(rng: Random, picture: Picture) -> list[Turn]:
    facts = picture.facts
    if picture.kind == "scene":
        return scene_turns(rng, facts["things"])
    if picture.kind == "text":
        return [ask(rng, facts["what"], facts["text"])]
    if picture.kind == "digit":
        return [ask(rng, "digit", facts["digit"])]
    return [ask(rng, "formula", facts["latex"])]
