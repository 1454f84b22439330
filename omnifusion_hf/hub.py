# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Model cards, and checked uploads to the Hub."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.utils import filter_repo_objects, validate_repo_id
from transformers import AutoConfig

from .io import LOSS_PLOT, SUMMARY, named, write_whole
from .markdown import Markdown, code, fill, plain, table
from .model.configuration_omnifusion import OmniFusionConfig


TEMPLATE = Path(__file__).parent / "model_card.md"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# Files of training that a model does not need.
NOT_UPLOADED = ["training_args.bin", "checkpoint-*"]
EVALUATION = "## Evaluation\n\nMeasured with lmms-eval.\n\n"  # followed by a table
PYTHON_TEXT = r'"(?:[^"\\\n]|\\.)*"'
USAGE = re.compile(
    rf"((?:AutoModelForImageTextToText|AutoProcessor)\.from_pretrained\(){PYTHON_TEXT}(?=, trust_remote_code=True)"
)


@dataclass
class CardFacts:
    """Facts of a card that are not in the folder's configuration."""

    license: str = "apache-2.0"
    base_model: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    language: list[str] = field(default_factory=lambda: ["en"])
    description: str = "A vision-language model: frozen vision encoder(s), a trained adapter, a decoder-only LLM."
    notes: list[str] = field(default_factory=list)


def write_card(folder: str | Path, given: dict, repo_id: str | None = None, scores: Sequence = ()) -> Path:
    """Writes a new README.md, or updates the given facts in the existing one. Returns its path.

    Args:
        given: fields of [`CardFacts`].
        repo_id, scores: as in [`render_card`].
    """
    path = Path(folder) / "README.md"
    if path.is_file():
        check_is_whole(Path(folder))
        card = update_card(ModelCard.load(path), given, repo_id)
        if scores:
            add_results(card, as_results(scores), model_name(path.parent, repo_id))
    else:
        card = render_card(folder, CardFacts(**given), repo_id, scores)
    write_whole(path, str(card))
    return path


def update_card(card: ModelCard, given: dict, repo_id: str | None) -> ModelCard:
    """Changes the given facts and the usage code; the rest of the card stays."""
    for name, value in given.items():
        card.data[name] = value or None
    if repo_id:
        card.text = with_repo(card.text, repo_id)
    return card


def add_results(card: ModelCard, results: list[EvalResult], name: str):
    """Adds scores to a card; a new score replaces the old one of the same task and metric."""
    before = card.data.eval_results or []
    results = [old for old in before if not any(old.is_equal_except_value(new) for new in results)] + results
    card.data.model_name, card.data.eval_results = card.data.model_name or name, results
    card.text = with_evaluation(card.text, evaluation_section(results))


def model_name(folder: Path, repo_id: str | None) -> str:
    return (repo_id or folder.resolve().name).split("/")[-1]


def render_card(folder: str | Path, facts: CardFacts, repo_id: str | None = None, scores: Sequence = ()) -> ModelCard:
    """A new card of a model folder.

    Args:
        facts: licence, base models (default: those that `omnifusion build` noted), data sets, languages, notes.
        repo_id: the name that the usage code loads; default: the folder.
        scores: of lmms-eval, as `evaluation.results.read_scores` returns them.
    """
    folder = Path(folder)
    check_is_whole(folder)
    config, name = AutoConfig.from_pretrained(folder), model_name(folder, repo_id)
    results, training = as_results(scores), read_training(folder)
    card_data = ModelCardData(
        license=facts.license,
        base_model=facts.base_model or getattr(config, "built_from", None),
        datasets=facts.datasets or None,
        language=facts.language,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["omnifusion", "multimodal", "vision-language"],
        model_name=name if results else None,
        eval_results=results or None,
    )
    preprocessing = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))["image_processor"]
    text = fill(
        TEMPLATE.read_text(encoding="utf-8"),
        name=name,
        repo=_quoted(repo_id or str(folder)),
        description=facts.description,
        parts=table(["part", "what", "parameters"], [row.values() for row in describe_parts(config)]),
        views=describe_views(preprocessing),
        tokens_per_view=config.image_seq_length,
        image_size=config.vision_config.image_size,
        training=table(["setting", "value"], training.items()) if training else "",
        loss_plot=LOSS_PLOT if (folder / LOSS_PLOT).is_file() else None,
        evaluation=evaluation_section(results) if results else "",
        notes=facts.notes,
    )
    return ModelCard(f"---\n{card_data}\n---\n\n{text}")


def evaluation_section(results: list[EvalResult]) -> Markdown:
    rows = [[result.dataset_name, result.metric_type, result.metric_value] for result in results]
    return Markdown(f"{EVALUATION}{table(['task', 'metric', 'value'], rows)}")


def with_evaluation(text: str, section: Markdown) -> str:
    """Replaces the section of scores in a card's text, or adds it before the limits or at the end. If a person wrote a
    section on evaluation, the text stays as it is."""
    ours = re.compile(re.escape(EVALUATION) + r"(\|.*\n?)+")
    if ours.search(text):
        return ours.sub(lambda _: f"{section}\n", text)
    if re.search("^#+ Evaluation", text, re.MULTILINE):
        return text
    before, heading, after = text.partition("\n## Limits")
    return f"{before.rstrip()}\n\n{section}\n{heading}{after}"


def with_repo(text: str, repo_id: str) -> str:
    """Sets the name that a card's usage code loads."""
    return USAGE.sub(lambda found: found[1] + _quoted(repo_id), text)


def _quoted(name: str) -> Markdown:
    """A Python string literal."""
    return Markdown(json.dumps(name, ensure_ascii=False))


def describe_parts(config: OmniFusionConfig) -> list[dict]:
    """Rows of the architecture table; parameters are counted on the meta device."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    vision, layers = config.vision_config, config.vision_feature_layer
    rows = []
    for index, encoder in enumerate(model.model.vision_tower.encoders):
        read = "all hidden states" if layers == "all" else f"hidden state {layers[index]}"
        what = (
            f"{encoder.config.model_type}, {vision.image_sizes[index]} px, {read} of "
            f"{vision.encoder_outputs[index].num_layers} layers, width {vision.hidden_sizes[index]}"
        )
        rows.append({"part": f"encoder {index + 1} (frozen)", "what": what, "module": encoder})
    rows.append({"part": "adapter", "what": config.projector_type, "module": model.model.multi_modal_projector})
    text = config.text_config
    what = (
        f"{text.model_type}, {text.num_hidden_layers} layers, width {text.hidden_size}, vocabulary {text.vocab_size}"
    )
    rows.append(
        {"part": "LLM", "what": what, "module": torch.nn.ModuleList([model.model.language_model, model.lm_head])}
    )
    for row in rows:
        row["parameters"] = f"{sum(p.numel() for p in row.pop('module').parameters()):,}"
    return rows


def describe_views(preprocessing: dict) -> Markdown:
    """A description of the image strategy."""
    fit = code(preprocessing["image_fit"])
    if preprocessing["view_strategy"] == "whole":
        return Markdown(f"one view ({fit})")
    canvases = ", ".join(f"{rows} x {columns}" for rows, columns in preprocessing["grid_canvases"])
    return Markdown(f"a whole view ({fit}) and the tiles of the best canvas of {plain(canvases)}")


def read_training(folder: Path) -> dict:
    """The summary that `omnifusion train` wrote to the folder; empty if there is none."""
    summary = folder / SUMMARY
    settings = json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {}
    parts = settings.get("trained_parameters", {})
    settings["trained_parameters"] = ", ".join(f"{part} {count:,}" for part, count in parts.items())
    return {name.replace("_", " "): value for name, value in settings.items() if value not in (None, "")}


def as_results(scores: Sequence) -> list[EvalResult]:
    """Scores of lmms-eval as metadata of a card."""
    return [
        EvalResult("image-text-to-text", score.task, score.task, score.metric, round(score.value, 4))
        for score in scores
    ]


def check_is_whole(folder: Path):
    """Raises `ValueError` for a missing folder, and for LoRA weights without their base model."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}.")
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder} holds only LoRA weights; first `omnifusion merge {folder} -o FOLDER`.")


def check_folder(folder: str | Path):
    """Loads the folder and generates one token. Raises `ValueError` for a folder that its users could not load."""
    from .inference import answer_question, load

    folder = Path(folder)
    check_is_whole(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a model folder: config.json is missing.")
    files = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*"))]
    files = list(filter_repo_objects(files, ignore_patterns=NOT_UPLOADED))
    if pickles := [file for file in files if file.endswith(PICKLES)]:
        raise ValueError(f"{folder} holds pickles {pickles}; remove them, and save weights as safetensors.")
    if not (folder / "README.md").is_file():
        raise ValueError(f"{folder} has no model card; write it with `omnifusion card {folder}`.")
    auto_map = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map", {})
    if not auto_map or any(f"{name.split('.')[0]}.py" not in files for name in auto_map.values()):
        raise ValueError(f"{folder} lacks the code that its card refers to; write it with save_pretrained.")
    answer_question(*load(str(folder)), [], "Hello", max_new_tokens=1)


def check_rights(api: HfApi, repo_id: str, create_pr: bool = False):
    """Raises `ValueError` unless the Hub knows the user and lets them write to the repository's namespace. A pull
    request needs a repository that exists, and no right. What a fine-grained token permits is seen at the upload."""
    with named(f"cannot push to {repo_id}", advice=" Log in with `hf auth login`, with a token that may write."):
        user = api.whoami()
        is_absent = create_pr and not api.repo_exists(repo_id)
    if is_absent:
        raise ValueError(f"there is no {repo_id} on the Hub to open a pull request on; leave out --create-pr.")
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError(f"cannot push to {repo_id}: the token may only read; use `hf auth login` with another.")
    organisations = [each["name"] for each in user.get("orgs", []) if each.get("roleInOrg") != "read"]
    owner = repo_id.rpartition("/")[0] or user["name"]
    if not create_pr and owner not in (user["name"], *organisations):
        raise ValueError(
            f"cannot push to {repo_id}: {user['name']} may write to {', '.join([user['name'], *organisations])}; name "
            "one of these, use `hf auth login` as another user, or --create-pr."
        )


def push(
    folder: str | Path, repo_id: str, private: bool = False, revision: str | None = None,
    commit_message: str = "Upload OmniFusion model", create_pr: bool = False,
) -> str:  # fmt: skip
    """Checks rights, the folder and its card, sets the card's usage code to `repo_id`, uploads; returns the URL.

    Args:
        private: of a new repository.
        revision: the branch, which is made if there is none; default: main.
        create_pr: opens a pull request instead; the URL is its.
    """
    validate_repo_id(repo_id)
    check_is_whole(Path(folder))
    if create_pr and revision:
        raise ValueError(f"a pull request is for main; leave out --revision {revision}, or --create-pr.")
    api = HfApi()
    check_rights(api, repo_id, create_pr)
    check_folder(folder)
    path = Path(folder) / "README.md"
    card = ModelCard.load(path)
    card.validate()
    write_whole(path, str(update_card(card, {}, repo_id)))
    if not create_pr:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=str(folder),
        commit_message=commit_message,
        revision=revision,
        create_pr=create_pr,
        ignore_patterns=NOT_UPLOADED,
    )
    return commit.pr_url or commit.commit_url if create_pr else str(url)  # no request without a change
