# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""The `omnifusion` command: one function a sub-command, each a thin call of the package (imported when it is used)."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import get_args

from .io import is_mistake, reason_of
from .model.modeling_omnifusion_projector import PROJECTORS
from .model.views_omnifusion import ImageFit, ViewStrategy


def build(options: argparse.Namespace):
    """Assembles pretrained parts to a folder that is ready to train."""
    from transformers.utils import logging

    from .build.build import Build, build
    from .build.presets import MODELS

    logging.set_verbosity_error()  # unused towers and new rows are no news here; missing weights raise
    given = {name: value for name, value in vars(options).items() if value is not None}
    preset = given.pop("preset", None)
    if preset not in (None, *MODELS):
        raise ValueError(f"--preset {preset} is unknown; use one of {', '.join(MODELS)}.")
    if preset is None and not {"vision", "text"} <= given.keys():
        raise ValueError("give --vision (once per encoder) and --text, or --preset.")
    for name in ("run", "output"):
        given.pop(name)
    build(Build(**(vars(MODELS[preset]) if preset else {}) | given), options.output)


def train(options: argparse.Namespace):
    """Trains one stage as a recipe says."""
    from .training.arguments import parse_recipe
    from .training.train import train

    resume = ["resume_from_checkpoint=true"] if options.resume else []
    train(*parse_recipe(options.recipe, [*options.overrides, *resume]))


def merge(options: argparse.Namespace):
    """Makes a plain model folder of one with LoRA weights."""
    from .training.lora import merge

    merge(options.folder, options.output, options.base)
    print(f"wrote {options.output}")


def ask(options: argparse.Namespace):
    """Answers one question about image files, or the questions about the bundled images."""
    from .inference import TINY, answer, answer_examples, load

    *images, question = options.images_and_question or [None]
    if not options.examples and question is None:
        raise ValueError('nothing to ask; write omnifusion ask IMAGE "question", or --examples.')
    if question is not None and os.path.isfile(question):
        raise ValueError(f"the question is missing after {question}.")
    if question is not None and bool(images) == options.text_only:
        found = f"{question!r} is asked about {len(images)} images"
        raise ValueError(f'{found}; write omnifusion ask IMAGE "question", or omnifusion ask --text-only "question".')
    model, processor = load(options.model or TINY)
    if options.examples:
        answer_examples(model, processor)
        print('\nYour own image: omnifusion ask IMAGE "question" [--model FOLDER_OR_HUB_ID]')
    else:
        print(answer(model, processor, images, question, options.max_new_tokens))


def views(options: argparse.Namespace):
    """Draws what a model sees of an image and tells what that costs."""
    from .visualize import draw_file

    chosen = {"view_strategy": options.strategy, "image_fit": options.fit, "max_regions": options.max_regions}
    if options.side is not None:
        if options.tokens is None:
            raise ValueError(f"--side {options.side} changes how many tokens a view has; give --tokens as well.")
        chosen["size"] = {"height": options.side, "width": options.side}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    given = (options.image, options.output, options.model, options.region, options.tokens, options.context_length)
    print(f"{draw_file(*given, **chosen)}\nwrote {options.output}")


def serve(options: argparse.Namespace):
    """Starts an OpenAI-compatible server of one model."""
    from .serving.openai_server import serve

    serve(options.model, options.host, options.port)


def demo(options: argparse.Namespace):
    """Starts a page to talk to a model in the browser."""
    from .serving.gradio_app import demo

    demo(options.model, options.host, options.port)


def card(options: argparse.Namespace):
    """Writes README.md, the model card, into a model folder, or what is given into the card that is there."""
    from .hub import write_card

    given = {"license": options.license, "base_model": options.base_model, "datasets": options.dataset}
    given = {name: value for name, value in (given | {"language": options.language}).items() if value is not None}
    print(f"wrote {write_card(options.folder, given, options.repo_id, options.results)}")


def push(options: argparse.Namespace):
    """Checks a model folder and uploads it to the Hub."""
    from .hub import push

    print(push(options.folder, options.repo_id, options.private))


def report(options: argparse.Namespace):
    """Puts results beside the paper's tables; asks a model, and looks closer at answers."""
    from .evaluation.report import report

    given = {name: value for name, value in vars(options).items() if name != "run"}
    print("\n".join(f"wrote {path}" for path in report(**given)))


def tasks(options: argparse.Namespace):
    """Tells where the package's tasks for lmms-eval lie."""
    print(os.path.join(os.path.dirname(__file__), "evaluation", "tasks"))


def box(text: str) -> list[float]:
    """A box of the command line, such as 10,20,300,400."""
    return [float(number) for number in text.split(",")]


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise ValueError
    return int(text)


def port(text: str) -> int:
    """A number of a TCP port."""
    if count(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port; give one of 1 to 65535")
    return int(text)


def add_build(commands):
    command = commands.add_parser("build", help="assemble pretrained parts to a folder that is ready to train")
    command.add_argument("--preset", help="a model of the paper's tables, such as clip-dinov2-summation")
    command.add_argument("--vision", action="append", help="preset, PRESET=FOLDER, folder or Hub id; once per encoder")
    command.add_argument("--text", help="the LLM: preset, folder or Hub id")
    command.add_argument("--projector", choices=list(PROJECTORS), help="the adapter, default: mlp")
    command.add_argument("--views", choices=get_args(ViewStrategy))
    command.add_argument("--chat-template", choices=["omnifusion", "own"], help="own: that of a chat-tuned LLM")
    command.add_argument("--image-size", type=int, action="append", dest="image_sizes", help="once per encoder")
    command.add_argument("--layer", type=int, action="append", dest="layers", help="hidden state, once per encoder")
    command.add_argument("--image-fit", choices=get_args(ImageFit), help="default: the first encoder's")
    command.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: as stored")
    command.add_argument("-o", "--output", required=True, metavar="FOLDER")
    command.set_defaults(run=build)


def add_train(commands):
    command = commands.add_parser("train", help="train one stage as a recipe says")
    command.add_argument("recipe", help="YAML file, such as omnifusion_hf/recipes/pretrain.yaml")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="fields that win over the recipe's")
    command.add_argument("--resume", action="store_true", help="go on from output_dir's last whole checkpoint, if any")
    command.set_defaults(run=train)


def add_merge(commands):
    command = commands.add_parser("merge", help="make a plain model folder of one with LoRA weights")
    command.add_argument("folder", help="a checkpoint or the final folder of a LoRA run")
    command.add_argument("-o", "--output", required=True, metavar="FOLDER")
    command.add_argument("--base", metavar="MODEL", help="what the run started from, where that moved")
    command.set_defaults(run=merge)


def add_ask(commands):
    command = commands.add_parser("ask", help="ask a model about images")
    command.add_argument("images_and_question", nargs="*", metavar="IMAGE", help="image files, then the question")
    command.add_argument("--model", help="folder or Hub id; default: the bundled tiny model")
    command.add_argument("--text-only", action="store_true", help="ask without an image")
    command.add_argument("--max-new-tokens", type=int, default=128)
    command.add_argument("--examples", action="store_true", help="answer the questions about the bundled images")
    command.set_defaults(run=ask)


def add_views(commands):
    command = commands.add_parser("views", help="draw what a model sees of an image, with its token counts")
    command.add_argument("image")
    command.add_argument("-o", "--output", required=True, metavar="OUT.png")
    command.add_argument(
        "--model", help="folder or Hub id whose settings count; default: CLIP ViT-L/14-336 of the paper"
    )
    command.add_argument("--strategy", choices=get_args(ViewStrategy))
    command.add_argument("--fit", choices=get_args(ImageFit), help="how the whole image becomes a square")
    command.add_argument(
        "--region",
        type=box,
        action="append",
        metavar="L,T,R,B",
        help="a box in pixels; repeatable (--region=-5,… for a minus)",
    )
    command.add_argument("--max-regions", type=int, metavar="N")
    command.add_argument("--side", type=count, metavar="S", help="pixels of a view's side")
    command.add_argument("--tokens", type=count, metavar="P", help="visual tokens per view")
    command.add_argument("--context-length", type=count, metavar="N", help="tokens that the LLM has room for")
    command.set_defaults(run=views)


def add_demo(commands):
    command = commands.add_parser("demo", help="start a page to talk to a model in the browser")
    command.add_argument("--model", help="folder or Hub id; default: the bundled tiny model")
    command.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other computers in")
    command.add_argument("--port", type=port, help="default: the first free one from 7860")
    command.set_defaults(run=demo)


def add_serve(commands):
    command = commands.add_parser("serve", help="serve a model to OpenAI clients and `transformers chat`")
    command.add_argument("model", help="folder or Hub id")
    command.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other computers in")
    command.add_argument("--port", type=port, default=8000)
    command.set_defaults(run=serve)


def add_report(commands):
    command = commands.add_parser("report", help="put results beside the paper's tables; errors, robustness, groups")
    command.add_argument(
        "results", nargs="*", metavar="RESULTS", help="folders of lmms-eval (NAME=PATH names one), answers.jsonl"
    )
    command.add_argument("-o", "--output", required=True, metavar="DIR")
    command.add_argument("--errors", action="store_true", help="errors.html: wrong answers with their images")
    command.add_argument("--groups", metavar="CSV", help="compare groups of images: columns image, group, …")
    command.add_argument("--model", metavar="FOLDER", help="ask this model (folder or Hub id) the questions of --data")
    command.add_argument("--data", metavar="QUESTIONS", help=".json or .jsonl in the format of training data")
    command.add_argument(
        "--image-folder",
        metavar="FOLDER",
        help="of the images of --data and --errors; default: where --data is",
    )
    command.add_argument("--perturb", nargs="+", metavar="NAME", help="ask with changed images as well; or: all")
    command.add_argument(
        "--epsilon", nargs="+", type=float, metavar="E", help="most change by PGD, levels of 0..255; default: 1 2 4 8"
    )
    command.add_argument("--batch-size", type=count, default=16)
    command.add_argument("--max-new-tokens", type=count, default=128)
    command.add_argument("--seed", type=int, default=0, help="of noise, places and the attack's start")
    command.set_defaults(run=report)


def add_tasks(commands):
    command = commands.add_parser("tasks", help="print the folder of tasks for lmms-eval's --include_path")
    command.set_defaults(run=tasks)


def add_card(commands):
    command = commands.add_parser("card", help="write the model card of a folder, or update the one that is there")
    command.add_argument("folder")
    command.add_argument("--repo-id", help="what the card's usage code loads; of a new card by default the folder")
    command.add_argument("--license", help="of a new card by default apache-2.0")
    command.add_argument("--base-model", nargs="*", help="Hub ids of the parts")
    command.add_argument("--dataset", nargs="*", help="Hub ids of the training data")
    command.add_argument("--language", nargs="*", help="of a new card by default en")
    command.add_argument("--results", help="result file of lmms-eval")
    command.set_defaults(run=card)


def add_push(commands):
    command = commands.add_parser("push", help="check a folder and upload it to the Hub")
    command.add_argument("folder")
    command.add_argument("repo_id")
    command.add_argument("--private", action="store_true")
    command.set_defaults(run=push)


class Command(argparse.ArgumentParser):
    """Takes options between words too: `train RECIPE --resume key=value`, `ask IMAGE --model FOLDER "question"`."""

    mixing = False

    def parse_known_args(self, args=None, namespace=None):
        if self.mixing:  # called by argparse's own method below
            return super().parse_known_args(args, namespace)
        self.mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.mixing = False


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="omnifusion", description="OmniFusion: images and questions in, text out.")
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=Command)
    for add in (
        add_build,
        add_train,
        add_merge,
        add_ask,
        add_views,
        add_demo,
        add_serve,
        add_report,
        add_tasks,
        add_card,
        add_push,
    ):
        add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. What the user can mend (`files.is_mistake`) ends in one line on stderr and exit code 2, Ctrl-C
    in exit code 130; a fault of this package shows its traceback."""
    options = build_parser().parse_args(argv)
    try:
        options.run(options)
        return 0
    except KeyboardInterrupt:
        said, code = "interrupted", 130
    except Exception as error:
        if not is_mistake(error):
            raise
        worker = re.split(r"\n[\w.]+Error: ", str(error))  # a data loader's worker adds its stack trace
        said, code = f"error: {reason_of(error) if len(worker) == 1 else ' '.join(worker[-1].split())}", 2
    # Only now, when a failed run's progress bar is closed.
    print(f"omnifusion: {said}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
