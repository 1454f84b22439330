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
        list[str] | None, typer.Argument(metavar="IMAGE... QUESTION", help="Image files, then the question.")
    ] = None,
    model: Model = None,
    text_only: Annotated[bool, typer.Option("--text-only", help="Ask without an image.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 128,
    examples: Annotated[
        bool, typer.Option("--examples", help="Answer the questions about the bundled images.")
    ] = False,
    device: Device = None,
    dtype: ModelDtype = None,
    quantization: Quantization = None,
    attention: Attention = None,
):
    """Ask a model one question about images.

    \b
    omnifusion ask cat.png "What colour is the cat?" --model my-omnifusion
    omnifusion ask --examples
    """
    from ..inference import TINY, answer_examples, answer_question, load

    *images, question = images_and_question or [None]
    if not examples and question is None:
        raise ValueError('no question; write omnifusion ask IMAGE "question", or --examples.')
    if question is not None and os.path.isfile(question):
        raise ValueError(f"the question is missing after {question}.")
    if question is not None and bool(images) == text_only:
        found = f"{question!r} comes with {len(images)} images"
        raise ValueError(f'{found}; write omnifusion ask IMAGE "question", or omnifusion ask --text-only "question".')
    loading = {"device": device, "dtype": dtype, "quantization": quantization, "attn_implementation": attention}
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
    from ..visualize import draw_file

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
        list[str] | None, typer.Option(metavar="ORIGIN...", help="Origins of web pages that may ask; * for all.")
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
