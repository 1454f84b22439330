# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Commands that make models: build, train, data, merge."""

from typing import Annotated, Literal

import typer

from ..io import RECIPES, recipe_path
from ..options import SETTINGS, DtypeOption, Fit, Model, Output, Quantization, Strategy


NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))

app = typer.Typer(**SETTINGS)


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
    heads: Annotated[int | None, typer.Option(help="Attention heads of the adapter. Default: 4.")] = None,
    intermediate_size: Annotated[
        int | None, typer.Option(help="Feed-forward width of the adapter. Default: 2048.")
    ] = None,
    dropout: Annotated[float | None, typer.Option(help="Dropout of the adapter in training. Default: 0.1.")] = None,
    queries: Annotated[
        int | None, typer.Option(help="Visual tokens per view of the adapter attention. Default: 576.")
    ] = None,
    views: Annotated[Strategy | None, typer.Option(help="Views of an image. Default: whole.")] = None,
    chat_template: Annotated[
        Literal["omnifusion", "own"] | None,
        typer.Option(help="own: the chat template of the LLM's tokenizer. Default: omnifusion, the paper's."),
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

    from ..build.build import Build, build
    from ..build.presets import MODELS

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
    from ..inference import context_length, context_warning
    from ..training.stages import apply_stage, format_plan, stage_plan

    config, vision = model.config, model.config.vision_config
    encoders = [f"{c.model_type} {size} px" for c, size in zip(vision.encoder_configs, vision.image_sizes)]
    cost = processor.count_tokens((1080, 1920), context_length(config.text_config))
    next_command = f"omnifusion train pretrain model_name_or_path={folder} data_path=DATA.json image_folder=IMAGES"
    if cost.total > 1536:  # the recipe's max_length is 2048, and the conversation needs room
        next_command += f" max_length={-(-(cost.total + 512) // 2048) * 2048}"
    return (
        f"{folder}: {' + '.join(encoders)} -> {config.projector_type} -> {config.text_config.model_type}\n"
        f"{format_plan(stage_plan(apply_stage(model, 'pretrain')))}\n"
        f"{config.image_seq_length} tokens per view; an image of 1920 x 1080: {cost}\n{context_warning(cost)}"
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
    from ..training.arguments import parse_recipe
    from ..training.train import train

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
    from ..inference import TINY
    from ..training.mixture import Source
    from ..training.preview import preview

    preview(Source(path, image_folder), model or str(TINY), samples, max_length, drawings)


@app.command()
def merge(
    folder: Annotated[str, typer.Argument(help="Checkpoint or final folder of a LoRA run.")],
    output: Output,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Model that the run started from, if it was moved.")
    ] = None,
    quantization: Quantization = None,
):
    """Merge LoRA weights into their base model, as a plain model folder.

    \b
    omnifusion merge lora-run -o merged
    omnifusion merge lora-run -o merged-4bit --quantization 4bit
    """
    from ..training.lora import merge

    merge(folder, output, base, quantization)
    print(f"wrote {output}")
