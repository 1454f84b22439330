# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Commands that measure and publish a model: report, tasks, card, push."""

from pathlib import Path
from typing import Annotated

import typer

from ..options import SETTINGS


app = typer.Typer(**SETTINGS)


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
        str | None, typer.Option(metavar="QUESTIONS", help="File, folder, Hub id or mixture, as training data.")
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
    """Print scores and set them beside the paper's tables; show errors, robustness, groups.

    \b
    omnifusion report logs/my-omnifusion -o report
    omnifusion report answers.jsonl -o report
    omnifusion report --model my-omnifusion --data questions.json --perturb noise blur -o report
    """
    options = locals() | {"results": results or []}
    from ..evaluation.report import report

    print("\n".join(f"wrote {path}" for path in report(**options)))


@app.command()
def tasks():
    """Print the folder of tasks for lmms-eval's --include_path.

    \b
    lmms-eval eval --include_path "$(omnifusion tasks)" --tasks textvqa_val_ocr …
    """
    print(Path(__file__).parents[1] / "evaluation/tasks")


@app.command()
def card(
    folder: Annotated[str, typer.Argument(help="Model folder.")],
    repo_id: Annotated[
        str | None, typer.Option(help="Name that the usage code loads. Default in a new card: the folder.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="Default in a new card: apache-2.0.")] = None,
    base_model: Annotated[
        list[str] | None,
        typer.Option(metavar="ID...", help="Hub ids of the parts. Default in a new card: those of the build."),
    ] = None,
    dataset: Annotated[list[str] | None, typer.Option(metavar="ID...", help="Hub ids of the training data.")] = None,
    language: Annotated[list[str] | None, typer.Option(metavar="CODE...", help="Default in a new card: en.")] = None,
    results: Annotated[
        str | None, typer.Option(metavar="FILE", help="Result file of lmms-eval, or answers of omnifusion ask.")
    ] = None,
):
    """Write the model card of a folder, or update the one that is there.

    \b
    omnifusion card my-omnifusion --license apache-2.0 --dataset liuhaotian/LLaVA-Pretrain
    """
    from ..evaluation.results import read_scores
    from ..hub import write_card

    lists = {"base_model": base_model, "datasets": dataset, "language": language}
    given = {name: [word for word in words if word] for name, words in lists.items() if words is not None}
    scores = read_scores(results) if results else []
    print(f"wrote {write_card(folder, given | ({'license': license} if license else {}), repo_id, scores)}")


@app.command()
def push(
    folder: Annotated[str, typer.Argument(help="Model folder.")],
    repo_id: Annotated[str, typer.Argument(help="Repository on the Hub: owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch, which is made if there is none. Default: main.")
    ] = None,
    commit_message: Annotated[
        str, typer.Option(metavar="TEXT", help="Title of the commit.")
    ] = "Upload OmniFusion model",
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
):
    """Check rights and a model folder, and upload it to the Hub.

    \b
    omnifusion push my-omnifusion YOU/my-omnifusion --private
    """
    from ..hub import push

    print(push(folder, repo_id, private, revision, commit_message, create_pr))
