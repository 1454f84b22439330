"""A model of pretrained parts, step by step: parts, train, measure, export; and the shipped one: demo. Each is done
once and continues where it was interrupted."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from . import easy_vqa, emoji, encoder, llm, model, photographs, retrieval


app = typer.Typer(help=__doc__, add_completion=False)
Name = Annotated[Literal[tuple(model.VARIANTS)], typer.Argument(help="The model.")]


@app.command()
def parts():
    """Download, convert and verify the parts; write the benchmarks."""
    for step in (encoder.convert, llm.convert, easy_vqa.write, emoji.write):
        print(step())


@app.command()
def train(name: Name = "mlp"):
    """Assemble a model and train both stages; continues where it was interrupted."""
    print(model.train(name))


@app.command()
def measure(name: Name = "mlp"):
    """Answer all test questions, those of easy-VQA also with other images."""
    print(*model.measure(name))


@app.command(name="retrieval")
def nearest():
    """Name emoji in unseen styles by the nearest drawing and by a linear classifier, for each layer of the encoder."""
    for layer, accuracies in enumerate(retrieval.accuracies()):
        print(f"layer {layer}:", ", ".join(f"{name} {accuracy:.3f}" for name, accuracy in accuracies.items()))


@app.command()
def export(name: Name = "both"):
    """Write the trained weights to the repository."""
    model.export(name)


@app.command(name="photographs")
def photos(output: Annotated[Path, typer.Option(help="PNG file.")] = Path("photographs.png")):
    """Draw what the shipped model says about photographs of installed packages."""
    print(*photographs.draw(model.shipped(), output), sep="\n")


@app.command()
def demo():
    """Make the shipped model and ask it questions of the test split."""
    model.demo()


app()
