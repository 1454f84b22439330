# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Commands that ask and show a model: ask, views, demo, serve."""

import os
from typing import Annotated, Literal

import typer

from ..options import SETTINGS, Attention, Device, Fit, Host, Model, ModelDtype, Quantization, Strategy


KEY_VARIABLE = "OMNIFUSION_API_KEY"

app = typer.Typer(**SETTINGS)


@app.command()
def ask(
    images_and_question: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE... QUESTION", help="Image files or one folder of images, then the question."),
    ] = None,
    model: Model = None,
    text_only: Annotated[bool, typer.Option("--text-only", help="Ask without an image.")] = False,
    data: Annotated[
        str | None, typer.Option(metavar="QUESTIONS", help="File, folder, Hub id or mixture (.yaml) of questions.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE.jsonl", help="File for answers to many questions."),
    ] = None,
    image_folder: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Images of --data. Default: --data's folder.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions per batch, with -o.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 128,
    examples: Annotated[
        bool, typer.Option("--examples", help="Answer the questions about the bundled images.")
    ] = False,
    device: Device = None,
    dtype: ModelDtype = None,
    quantization: Quantization = None,
    attention: Attention = None,
):
    """Ask a model one question about images, or many questions.

    \b
    omnifusion ask cat.png "What colour is the cat?" --model my-omnifusion
    omnifusion ask --data questions.jsonl -o answers.jsonl --model my-omnifusion
    omnifusion ask photos "What is in the image?" -o answers.jsonl
    omnifusion ask --examples
    """
    loading = {"device": device, "dtype": dtype, "quantization": quantization, "attn_implementation": attention}
    *images, question = images_and_question or [None]
    is_folder = len(images) == 1 and os.path.isdir(images[0])
    if data or is_folder or output or image_folder:
        one_only = text_only or examples or (image_folder and not data) or (data and question is not None)
        if one_only or not output or bool(data) == is_folder:
            raise ValueError(
                "many questions are omnifusion ask --data QUESTIONS -o FILE.jsonl, or one question about each image "
                'of a folder, omnifusion ask FOLDER "question" -o FILE.jsonl.'
            )
        from ..evaluation.asking import ask_questions
        from ..evaluation.questions import questions_about_folder, read_questions
        from ..inference import TINY

        questions = read_questions(data, image_folder) if data else questions_about_folder(images[0], question)
        return ask_questions(questions, output, model or TINY, batch_size, max_new_tokens, **loading)
    ask_one(images, question, model, text_only, max_new_tokens, examples, loading)


def ask_one(
    images: list[str],
    question: str | None,
    model: str | None,
    text_only: bool,
    max_new_tokens: int,
    examples: bool,
    loading: dict,
):
    """Prints the answer to one question, or those to the questions about the bundled images."""
    from ..inference import TINY, answer_examples, answer_question, load

    if not examples and question is None:
        raise ValueError('no question; write omnifusion ask IMAGE "question", or --examples.')
    if question is not None and os.path.isfile(question):
        raise ValueError(f"the question is missing after {question}.")
    if question is not None and bool(images) == text_only:
        found = f"{question!r} comes with {len(images)} images"
        raise ValueError(f'{found}; write omnifusion ask IMAGE "question", or omnifusion ask --text-only "question".')
    loaded = load(model or TINY, **loading)
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
    from ..inference import context_warning
    from ..visualize import describe_encoders, draw_file

    if side is not None and tokens is None:
        raise ValueError(f"--side {side} changes how many tokens a view has; give --tokens as well.")
    size = side and {"height": side, "width": side}
    options = {"view_strategy": strategy, "image_fit": fit, "max_regions": max_regions, "size": size}
    options = {name: value for name, value in options.items() if value is not None}
    boxes = region and [[float(number) for number in box.split(",")] for box in region]
    count = draw_file(image, output, model, boxes, tokens, context_length, **options)
    encoders = describe_encoders(model) if model and not side else []
    print(*encoders, f"{count}\n{context_warning(count)}wrote {output}", sep="\n")


@app.command()
def demo(
    model: Model = None,
    host: Host = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="TCP port. Default: the first free one from 7860.")
    ] = None,
    examples: Annotated[
        str | None, typer.Option(metavar="FOLDER_OR_JSONL", help="Images to click on. Default: the bundled ones.")
    ] = None,
    device: Device = None,
    dtype: ModelDtype = None,
    quantization: Quantization = None,
    attention: Attention = None,
):
    """Start a page in the browser to chat with a model.

    \b
    omnifusion demo --model my-omnifusion
    """
    from ..serving.gradio_app import demo

    loading = {"device": device, "dtype": dtype, "quantization": quantization, "attn_implementation": attention}
    demo(model, host, port, examples=examples, **loading)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="Folder or Hub id.")],
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(help=f"Key that clients must send. Default: the variable {KEY_VARIABLE}, else none.")
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN...", help="Origins of web pages that may ask; * for all. Then no image is given as a path."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Most waiting requests that are answered together.")] = 8,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="What the server logs.")
    ] = "info",
    device: Device = None,
    dtype: ModelDtype = None,
    quantization: Quantization = None,
    attention: Attention = None,
):
    """Serve a model to OpenAI clients and `transformers chat`.

    \b
    omnifusion serve my-omnifusion --port 8000
    omnifusion serve my-omnifusion --quantization 4bit --dtype bfloat16
    """
    from ..serving.openai_server import serve

    loading = {"device": device, "dtype": dtype, "quantization": quantization, "attn_implementation": attention}
    api_key = os.environ.get(KEY_VARIABLE) if api_key is None else api_key
    serve(model, host, port, api_key, cors or (), log_level, batch_size, **loading)
