"""`omnifusion convert`: one function per source, which imports what it calls."""

from pathlib import Path
from typing import Annotated

import typer

from omnifusion_hf.options import SETTINGS, Dtype, DtypeOption, Output


app = typer.Typer(**SETTINGS)
Source = Annotated[str, typer.Option(help="Folder or Hub id of the published weights.")]


@app.command("v1.1")
def convert_omnifusion(
    source: Source,
    output: Output,
    vision: Annotated[
        str, typer.Option(help="Folder or Hub id of the CLIP vision tower.")
    ] = "openai/clip-vit-large-patch14-336",
    dtype: DtypeOption = None,
):
    """Convert the authors' release v1.1 to a model folder.

    \b
    omnifusion convert v1.1 --source AIRI-Institute/OmniFusion --output omnifusion-v1_1
    """
    from .convert_omnifusion import convert

    print(f"wrote {convert(source, vision, output, torch_dtype(dtype))}")


@app.command("open-clip")
def convert_open_clip(
    source: Annotated[str, typer.Option(help="Folder, Hub id, or name of a model of open_clip.")],
    output: Output,
    pretrained: Annotated[
        str | None, typer.Option(help="For a name: a pretrained tag of open_clip, or a file of weights.")
    ] = None,
    dtype: DtypeOption = None,
):
    """Convert the vision tower of an OpenCLIP model to an encoder folder.

    \b
    omnifusion convert open-clip --source laion/CLIP-ViT-bigG-14-laion2B-39B-b160k --output bigG-14
    omnifusion convert open-clip --source ViT-bigG-14 --pretrained laion2b_s39b_b160k --output bigG-14
    """
    from .convert_open_clip import convert

    print(f"wrote {convert(source, output, pretrained, torch_dtype(dtype))}")


@app.command("intern-vit")
def convert_intern_vit(source: Source, output: Output, dtype: DtypeOption = None):
    """Convert InternViT to an encoder folder.

    \b
    omnifusion convert intern-vit --source OpenGVLab/InternViT-6B-448px-V1-2 --output internvit-6b
    """
    from .convert_intern_vit import convert

    print(f"wrote {convert(source, output, torch_dtype(dtype))}")


@app.command("texify")
def convert_texify(source: Source, output: Output, dtype: DtypeOption = None):
    """Convert the encoder of Texify, or of another Donut model, to an encoder folder.

    \b
    omnifusion convert texify --source vikp/texify --output texify-encoder
    """
    from .convert_texify import convert

    print(f"wrote {convert(source, output, torch_dtype(dtype))}")


@app.command("verify")
def verify_conversion(
    source: Annotated[Path, typer.Option(help="Folder of the release.")],
    vision: Annotated[Path, typer.Option(help="Folder of the CLIP vision tower.")],
    converted: Annotated[Path, typer.Option(help="Folder that `convert v1.1` wrote.")],
    images: Annotated[list[Path], typer.Option(metavar="IMAGE...", help="Image files.")],
):
    """Compare a converted folder with the release; exit status 1 if they differ.

    \b
    omnifusion convert verify --source release --vision clip --converted omnifusion-v1_1 --images a.png b.jpg
    """
    from .verify_conversion import print_table, verify

    raise typer.Exit(0 if print_table(verify(source, vision, converted, images)) else 1)


def torch_dtype(name: Dtype | None):
    import torch

    return name and getattr(torch, name)
