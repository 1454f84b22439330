"""Things: some 1,000 emoji in nine drawing styles, with names and categories of the CLDR.

Two styles are held out whole: their drawings test the names. A tenth of the things is held out in every style: they
test the category, which can be told without ever having seen the thing. Every training drawing has variations, because
seven styles are few to learn from what a style may change.
"""

import json
import random
import re
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageEnhance
from tqdm import tqdm

from omnifusion_hf.io import staged_folder

from .easy_vqa import sample, swapped
from .packages import REAL, STYLES, unpacked


FOLDER = REAL / "emoji"
SIDE = 112
HELD_OUT_STYLES = ("twemoji", "openmoji")
HELD_OUT_SHARE = 0.1
LEAST_STYLES = 6
VARIATIONS = 3
NAME, CATEGORY = "What is in the picture?", "What kind of thing is in the picture?"
CATEGORIES = {
    "smileys-emotion": "face or feeling",
    "animals-nature": "animal or plant",
    "food-drink": "food or drink",
    "travel-places": "place or vehicle",
    "activities": "activity",
    "objects": "object",
    "symbols": "symbol",
}


@dataclass(frozen=True)
class Thing:
    code: str
    name: str
    category: str

    @property
    def styles(self) -> list[str]:
        return [style for style in STYLES if self.code in drawings(style)]


def plain(code: str) -> str:
    """Sets write a code point sequence with and without the variation selector."""
    return "-".join(point for point in code.lower().split("-") if point != "fe0f")


@cache
def icons(style: str) -> dict:
    return json.loads((unpacked(f"@iconify-json/{style}") / "package/icons.json").read_text())


@cache
def drawings(style: str) -> dict[str, str]:
    """Icon names by code. Sets that list no characters name their icons as CLDR names things."""
    package = icons(style)
    by_code = json.loads((unpacked(f"@iconify-json/{style}") / "package/chars.json").read_text())
    if not by_code:
        by_name = {slug(name): name for name in [*package.get("aliases", {}), *package["icons"]]}
        by_code = {
            entry["hexcode"]: by_name[slug(entry["label"])] for entry in cldr() if slug(entry["label"]) in by_name
        }
    parents = {name: alias["parent"] for name, alias in package.get("aliases", {}).items()}
    by_code = {plain(code): parents.get(name, name) for code, name in by_code.items()}
    return {code: name for code, name in by_code.items() if name in package["icons"]}


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@cache
def cldr() -> list[dict]:
    return json.loads((unpacked("emojibase-data") / "package/en/data.json").read_text())


def things() -> list[Thing]:
    """Things with a name that few enough words tell, drawn in most styles."""
    groups = json.loads((unpacked("emojibase-data") / "package/meta/groups.json").read_text())["groups"]
    categories = {number: CATEGORIES[name] for number, name in groups.items() if name in CATEGORIES}
    found = [
        Thing(plain(entry["hexcode"]), entry["label"], categories[str(entry["group"])])
        for entry in cldr()
        if str(entry.get("group")) in categories
    ]
    return [thing for thing in found if len(thing.styles) >= LEAST_STYLES]


def draw(style: str, code: str) -> Image.Image:
    """One drawing on white, `SIDE` pixels."""
    import resvg_py

    package = icons(style)
    icon = package["icons"][drawings(style)[code]]
    left, top, width, height = (
        icon.get(name, package.get(name, default))
        for name, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{SIDE}" '
        f'height="{SIDE}" viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )
    drawn = Image.open(BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE)))).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")


def varied(image: Image.Image, seed: str) -> Image.Image:
    """Turned a little, of another size, paler or stronger. Never mirrored or grey: "left arrow" and "red heart" are
    names."""
    rng = random.Random(seed)
    for enhance, least, most in ((ImageEnhance.Color, 0.7, 1.6), (ImageEnhance.Contrast, 0.6, 1.3)):
        image = enhance(image).enhance(rng.uniform(least, most))
    size = round(SIDE * rng.uniform(0.7, 1.1))
    placed = Image.new("RGB", (SIDE, SIDE), "white")
    corner = [(SIDE - size) // 2 + rng.randint(-8, 8) for _ in range(2)]
    placed.paste(image.resize((size, size)), corner)
    return placed.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC, fillcolor="white")


def write() -> Path:
    """PNG files by style, `train.json`, `names.json` (held-out styles), `categories.json` (held-out things), and the
    same questions about other drawings, `names_swapped.json` and `categories_swapped.json`."""
    if FOLDER.exists():
        return FOLDER
    rng, known = random.Random(0), things()
    unseen = {*rng.sample(known, round(len(known) * HELD_OUT_SHARE))}
    files = {"train": [], "names": [], "categories": []}
    with staged_folder(FOLDER) as folder:
        for thing in tqdm(known, desc="drawings"):
            for style in thing.styles:
                image = f"{style}/{thing.code}.png"
                (folder / style).mkdir(exist_ok=True)
                drawing = draw(style, thing.code)
                drawing.save(folder / image)
                turns = [(NAME, thing.name), (CATEGORY, thing.category)]
                if thing in unseen:
                    files["categories"].append(sample(image, image, turns[1:], task="category of an unseen thing"))
                elif style in HELD_OUT_STYLES:
                    files["names"].append(sample(image, image, turns[:1], task="name in an unseen style"))
                else:
                    files["train"].append(sample(image, image, rng.sample(turns, 2)))
                    for number in range(1, VARIATIONS + 1):
                        image = f"{style}/{thing.code}.{number}.png"
                        varied(drawing, image).save(folder / image)
                        files["train"].append(sample(image, image, rng.sample(turns, 2)))
        for samples in files.values():
            rng.shuffle(samples)
        files |= {f"{name}_swapped": swapped(files[name]) for name in ("names", "categories")}
        for name, samples in files.items():
            (folder / f"{name}.json").write_text(json.dumps(samples, indent=0), encoding="utf-8")
    return FOLDER
