"""A page of answers about real photographs, all JPEG files that packages ship, right or wrong."""

import math
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageOps

from omnifusion_hf.figures import new_figure, save_figure
from omnifusion_hf.inference import answer_question, load


# Other files in these folders are logos, animations and drawings too.
FOLDERS = {"sklearn": "datasets/images", "skimage": "data", "gradio": "media_assets/images"}
KINDS = (".jpg", ".jpeg")
QUESTION = "What is in the picture?"
COLUMNS, SIDE = 4, 240


def photographs() -> list[Path]:
    """The JPEG files of the packages that are installed here."""
    specs = {folder: find_spec(package) for package, folder in FOLDERS.items()}
    folders = [Path(spec.origin).parent / folder for folder, spec in specs.items() if spec is not None]
    return sorted(path for folder in folders for path in folder.glob("*") if path.suffix in KINDS)


def draw(model: Path, output: Path) -> list[str]:
    """Draws every photograph with its answer; returns the answers."""
    loaded, paths = load(str(model)), photographs()
    rows = math.ceil(len(paths) / COLUMNS)
    figure, answers = new_figure(3 * COLUMNS, 3.2 * rows), []
    for index, path in enumerate(paths, start=1):
        answers.append(answer_question(*loaded, [str(path)], QUESTION, max_new_tokens=12))
        panel = figure.add_subplot(rows, COLUMNS, index)
        with Image.open(path) as image:
            panel.imshow(ImageOps.contain(image.convert("RGB"), (SIDE, SIDE)))
        panel.set_title(f"{path.stem}: {answers[-1]}", fontsize=9, wrap=True)
        panel.axis("off")
    save_figure(figure, output, dpi=80)
    return answers
