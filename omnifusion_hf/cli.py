# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""The `omnifusion` command: one function per command, which imports what it calls, so that `--help` is fast."""

import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Literal

import typer

from . import __version__
from .io import RECIPES, is_mistake, reason_of, recipe_path
from .options import SETTINGS, DtypeOption, Host, Model, Output, repeat_options


NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))

Strategy = Literal["whole", "grid"]
Fit = Literal["crop", "pad", "squash"]

# setup.py installs conversion/ inside this package; in a clone it lies beside the package.
installed = find_spec(f"{__package__}.conversion") is not None
converters = import_module(f"{__package__}.conversion.command_line" if installed else "conversion.command_line")

app = typer.Typer(help="OmniFusion: images and questions in, text out.", **SETTINGS)
app.add_typer(converters.app, name="convert", help="Convert published weights to folders that load here.")


def show_version(given: bool):
    if given:
        print(f"omnifusion_hf {__version__}")
        raise typer.Exit


@app.callback()
def omnifusion(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
):
    pass


@app.command()
def build(
    output: Output,
    preset: Annotated[str | None, typer.Option(help="A model of the paper's tables.")] = None,
    vision: Annotated[
        list[str] | None, typer.Option(help="Preset, PRESET=FOLDER, folder or Hub id; once per encoder.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="The LLM: preset, folder or Hub id.")] = None,
    projector: Annotated[
        str | None, typer.Option(help="The adapter: mlp, transformer, concatenation, summation, attention, or yours.")
    ] = None,
    views: Annotated[Strategy | None, typer.Option(help="Views of an image. Default: whole.")] = None,
    chat_template: Annotated[
        Literal["omnifusion", "own"] | None,
        typer.Option(help="own: the chat template of the LLM's tokenizer. Default: release, the paper's."),
    ] = None,
    image_sizes: Annotated[
        list[int] | None, typer.Option("--image-size", help="Side of a view in pixels; once per encoder.")
    ] = None,
    layers: Annotated[
        list[int] | None, typer.Option("--layer", help="Index of the hidden state to read; once per encoder.")
    ] = None,
    image_fit: Annotated[Fit | None, typer.Option(help="Default: the first encoder's.")] = None,
    dtype: DtypeOption = None,
):
    """Assemble pretrained parts to a folder that is ready to train.

    \b
    omnifusion build --vision clip-vit-l-336 --text mistral-7b -o my-omnifusion
    omnifusion build --preset clip-dinov2-summation -o my-omnifusion
    """
    given = {name: value for name, value in locals().items() if value is not None}
    from transformers.utils import logging

    from .build.build import Build, build
    from .build.presets import MODELS

    logging.set_verbosity_error()  # unused towers and new rows are expected here; missing weights raise
    del given["output"]
    if preset not in (None, *MODELS):
        raise ValueError(f"--preset {preset} is unknown; use one of {', '.join(MODELS)}.")
    if preset is None and not {"vision", "text"} <= given.keys():
        raise ValueError("give --vision (once per encoder) and --text, or --preset.")
    built = build(Build(**(vars(MODELS[given.pop("preset")]) if preset else {}) | given), output)
    print(_parts_and_next_command(*built, output))


def _parts_and_next_command(model, processor, folder) -> str:
    """The parts, the plan of stage 1 (for which the model is prepared), and the command of stage 1."""
    from .inference import context_length
    from .training.stages import apply_stage, format_plan, stage_plan

    config, vision = model.config, model.config.vision_config
    encoders = [f"{c.model_type} {size} px" for c, size in zip(vision.encoder_configs, vision.image_sizes)]
    cost = processor.count_tokens((1080, 1920), context_length(config.text_config))
    next_command = f"omnifusion train pretrain model_name_or_path={folder} data_path=DATA.json image_folder=IMAGES"
    if cost.total > 1536:  # the recipe's max_length is 2048, and the conversation needs room
        next_command += f" max_length={-(-(cost.total + 512) // 2048) * 2048}"
    return (
        f"{folder}: {' + '.join(encoders)} -> {config.projector_type} -> {config.text_config.model_type}\n"
        f"{format_plan(stage_plan(apply_stage(model, 'pretrain')))}\n"
        f"{config.image_seq_length} tokens per view; an image of 1920 x 1080: {cost}\n"
        f"next, stage 1: {next_command}"
    )


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help=f"Recipe of this package ({', '.join(NAMES)}) or YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Fields that override the recipe's.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from output_dir's last whole checkpoint, if there is one.")
    ] = False,
):
    """Train one stage by a recipe.

    \b
    omnifusion train pretrain model_name_or_path=my-omnifusion data_path=captions.json
    """
    if not recipe_path(recipe).exists():
        raise ValueError(f"{recipe} is neither a file nor a recipe of this package ({', '.join(NAMES)}).")
    from .training.arguments import parse_recipe
    from .training.train import train

    overrides = [*(overrides or []), *(["resume_from_checkpoint=true"] if resume else [])]
    train(*parse_recipe(str(recipe_path(recipe)), overrides))


@app.command()
def data(
    path: Annotated[str, typer.Argument(help="File, folder, Hub id or mixture (.yaml), as data_path of a recipe.")],
    model: Model = None,
    image_folder: Annotated[str | None, typer.Option(help="Folder of the images. Default: the file's.")] = None,
    samples: Annotated[int, typer.Option(min=0, help="Samples to print.")] = 3,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of a sample. Default: the context length of the LLM.")
    ] = None,
    drawings: Annotated[str | None, typer.Option(metavar="FOLDER", help="Folder for drawings of the views.")] = None,
):
    """Print the first samples as the model will see them, and count the problems of all.

    \b
    omnifusion data dialogues.json --model my-omnifusion --image-folder images --drawings views
    """
    from .inference import TINY
    from .training.mixture import Source
    from .training.preview import preview

    preview(Source(path, image_folder), model or str(TINY), samples, max_length, drawings)


@app.command()
def merge(
    folder: Annotated[str, typer.Argument(help="Checkpoint or final folder of a LoRA run.")],
    output: Output,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Model that the run started from, if it was moved.")
    ] = None,
):
    """Merge LoRA weights into their base model, as a plain model folder.

    \b
    omnifusion merge lora-run -o merged
    """
    from .training.lora import merge

    merge(folder, output, base)
    print(f"wrote {output}")


@app.command()
def ask(
    images_and_question: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE... QUESTION", help="Image files, then the question.")
    ] = None,
    model: Model = None,
    text_only: Annotated[bool, typer.Option("--text-only", help="Ask without an image.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 128,
    examples: Annotated[
        bool, typer.Option("--examples", help="Answer the questions about the bundled images.")
    ] = False,
):
    """Ask a model one question about images.

    \b
    omnifusion ask cat.png "What colour is the cat?" --model my-omnifusion
    omnifusion ask --examples
    """
    from .inference import TINY, answer_examples, answer_question, load

    *images, question = images_and_question or [None]
    if not examples and question is None:
        raise ValueError('no question; write omnifusion ask IMAGE "question", or --examples.')
    if question is not None and os.path.isfile(question):
        raise ValueError(f"the question is missing after {question}.")
    if question is not None and bool(images) == text_only:
        found = f"{question!r} comes with {len(images)} images"
        raise ValueError(f'{found}; write omnifusion ask IMAGE "question", or omnifusion ask --text-only "question".')
    loaded = load(model or TINY)
    if examples:
        answer_examples(*loaded)
        print('\nYour own image: omnifusion ask IMAGE "question" [--model FOLDER_OR_HUB_ID]')
    else:
        print(answer_question(*loaded, images, question, max_new_tokens))


@app.command()
def views(
    image: Annotated[str, typer.Argument(help="Image file.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="OUT.png", help="Image file to write.")],
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the settings. Default: CLIP ViT-L/14-336 of the paper.")
    ] = None,
    strategy: Annotated[Strategy | None, typer.Option(help="Whole image only, or with the tiles of a grid.")] = None,
    fit: Annotated[Fit | None, typer.Option(help="How the whole image becomes a square.")] = None,
    region: Annotated[
        list[str] | None, typer.Option(metavar="L,T,R,B", help="Box in pixels; may be repeated.")
    ] = None,
    max_regions: Annotated[int | None, typer.Option(help="Most regions that are taken.")] = None,
    side: Annotated[int | None, typer.Option(min=1, help="Side of a view in pixels; needs --tokens.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Visual tokens per view.")] = None,
    context_length: Annotated[int | None, typer.Option(min=1, help="Context length of the LLM in tokens.")] = None,
):
    """Draw the views that a model sees of an image, and print their token counts.

    \b
    omnifusion views photo.jpg -o views.png --strategy grid
    """
    from .visualize import draw_file

    if side is not None and tokens is None:
        raise ValueError(f"--side {side} changes how many tokens a view has; give --tokens as well.")
    size = side and {"height": side, "width": side}
    options = {"view_strategy": strategy, "image_fit": fit, "max_regions": max_regions, "size": size}
    options = {name: value for name, value in options.items() if value is not None}
    boxes = region and [[float(number) for number in box.split(",")] for box in region]
    print(f"{draw_file(image, output, model, boxes, tokens, context_length, **options)}\nwrote {output}")


@app.command()
def demo(
    model: Model = None,
    host: Host = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="TCP port. Default: the first free one from 7860.")
    ] = None,
):
    """Start a page in the browser to chat with a model.

    \b
    omnifusion demo --model my-omnifusion
    """
    from .serving.gradio_app import demo

    demo(model, host, port)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="Folder or Hub id.")],
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")] = 8000,
):
    """Serve a model to OpenAI clients and `transformers chat`.

    \b
    omnifusion serve my-omnifusion --port 8000
    """
    from .serving.openai_server import serve

    serve(model, host, port)


@app.command()
def report(
    output: Annotated[str, typer.Option("-o", "--output", metavar="DIR", help="Folder of the report.")],
    results: Annotated[
        list[str] | None,
        typer.Argument(metavar="RESULTS", help="Folders of lmms-eval (NAME=PATH names one) or answers.jsonl."),
    ] = None,
    errors: Annotated[bool, typer.Option("--errors", help="Write errors.html: wrong answers with images.")] = False,
    groups: Annotated[
        str | None, typer.Option(metavar="CSV", help="Compare groups of images: columns image, group, …")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder or Hub id of a model to evaluate on --data.")] = None,
    data: Annotated[
        str | None, typer.Option(metavar="QUESTIONS", help=".json or .jsonl in the format of training data.")
    ] = None,
    image_folder: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Images of --data and --errors. Default: --data's folder."),
    ] = None,
    perturb: Annotated[
        list[str] | None, typer.Option(metavar="NAME...", help="Evaluate on changed images as well; or: all.")
    ] = None,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(metavar="E...", help="Bounds of the PGD attack, in levels of 0..255. Default: 1 2 4 8."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions per batch.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed of noise, places and the attack's start.")] = 0,
):
    """Set results beside the paper's tables; show errors, robustness, groups.

    \b
    omnifusion report logs/my-omnifusion -o report
    omnifusion report --model my-omnifusion --data questions.json --perturb noise blur -o report
    """
    options = locals() | {"results": results or []}
    from .evaluation.report import report

    print("\n".join(f"wrote {path}" for path in report(**options)))


@app.command()
def tasks():
    """Print the folder of tasks for lmms-eval's --include_path.

    \b
    lmms-eval eval --include_path "$(omnifusion tasks)" --tasks textvqa_val_ocr …
    """
    print(os.path.join(os.path.dirname(__file__), "evaluation", "tasks"))


@app.command()
def card(
    folder: Annotated[str, typer.Argument(help="Model folder.")],
    repo_id: Annotated[
        str | None, typer.Option(help="Name that the usage code loads. Default in a new card: the folder.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="Default in a new card: apache-2.0.")] = None,
    base_model: Annotated[list[str] | None, typer.Option(metavar="ID...", help="Hub ids of the parts.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(metavar="ID...", help="Hub ids of the training data.")] = None,
    language: Annotated[list[str] | None, typer.Option(metavar="CODE...", help="Default in a new card: en.")] = None,
    results: Annotated[str | None, typer.Option(metavar="FILE", help="Result file of lmms-eval.")] = None,
):
    """Write the model card of a folder, or update the one that is there.

    \b
    omnifusion card my-omnifusion --license apache-2.0 --dataset liuhaotian/LLaVA-Pretrain
    """
    from .evaluation.results import read_scores
    from .hub import write_card

    lists = {"base_model": base_model, "datasets": dataset, "language": language}
    given = {name: [word for word in words if word] for name, words in lists.items() if words is not None}
    scores = read_scores(results) if results else []
    print(f"wrote {write_card(folder, given | ({'license': license} if license else {}), repo_id, scores)}")


@app.command()
def push(
    folder: Annotated[str, typer.Argument(help="Model folder.")],
    repo_id: Annotated[str, typer.Argument(help="Repository on the Hub: owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
):
    """Check a model folder and upload it to the Hub.

    \b
    omnifusion push my-omnifusion YOU/my-omnifusion --private
    """
    from .hub import push

    print(push(folder, repo_id, private))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status. User errors (`io.is_mistake`) print one line to stderr and give 2,
    Ctrl-C gives 130; a fault of this package shows its traceback."""
    words = repeat_options(sys.argv[1:] if argv is None else list(argv))
    try:
        status = app(words, prog_name="omnifusion", standalone_mode=False) or 0
        said = "interrupted" if status == 130 else None
    except typer.TyperException as error:
        path = error.ctx.command_path if getattr(error, "ctx", None) else "omnifusion"
        said, status = f"error: {error.format_message()} See `{path} --help`.", 2
    except Exception as error:
        if not is_mistake(error):
            raise
        worker = re.split(r"\n[\w.]+Error: ", str(error))  # a data loader's worker adds its stack trace
        said, status = f"error: {reason_of(error) if len(worker) == 1 else ' '.join(worker[-1].split())}", 2
    if said:  # printed here, after the progress bar of a failed run is closed
        print(f"omnifusion: {said}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
