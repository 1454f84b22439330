"""A model of pretrained parts, step by step: parts, train, measure, export; and the shipped one: demo. Each is done
once and continues where it was interrupted."""

from typing import Annotated

import typer

from . import easy_vqa, emoji, encoder, llm, model, retrieval


app = typer.Typer(help=__doc__, add_completion=False)
Projector = Annotated[str, typer.Argument(help="The adapter: mlp or summation.")]


@app.command()
def parts():
    """Download, convert and verify the parts; write the benchmarks."""
    for step in (encoder.convert, llm.convert, easy_vqa.write, emoji.write):
        print(step())


@app.command()
def train(projector: Projector = "mlp"):
    """Assemble a model and train both stages; continues where it was interrupted."""
    print(model.train(projector))


@app.command()
def measure(projector: Projector = "mlp"):
    """Answer the whole test split of easy-VQA, also with wrong images."""
    print(model.measure(projector))


@app.command(name="retrieval")
def nearest():
    """Name emoji in unseen styles by the nearest drawing, for each layer of the encoder alone."""
    for layer, accuracy in enumerate(retrieval.accuracies()):
        print(f"layer {layer}: {accuracy:.3f}")


@app.command()
def export():
    """Write the trained weights of mlp to the repository."""
    model.export()


@app.command()
def demo():
    """Make the shipped model and ask it questions of the test split."""
    model.demo()


app()
