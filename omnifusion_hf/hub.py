# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Folders for the Hub: with a model card, checked before they are pushed."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.utils import filter_repo_objects, validate_repo_id
from transformers import AutoConfig

from .evaluation.results import read_scores
from .io import LOSS_PLOT, SUMMARY, write_whole
from .markdown import Markdown, code, fill, plain, table
from .model.configuration_omnifusion import OmniFusionConfig


TEMPLATE = Path(__file__).parent / "model_card.md"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# What training leaves in a model folder and nobody needs to load it.
LEFT_OUT = ["training_args.bin", "checkpoint-*"]
EVALUATION = "## Evaluation\n\nMeasured with lmms-eval.\n\n"  # and a table
PYTHON_TEXT = r'"(?:[^"\\\n]|\\.)*"'
USAGE = re.compile(
    rf"((?:AutoModelForImageTextToText|AutoProcessor)\.from_pretrained\(){PYTHON_TEXT}(?=, trust_remote_code=True)"
)


@dataclass
class CardFacts:
    """What a card says that the folder's configuration does not know."""

    license: str = "apache-2.0"
    base_model: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    language: list[str] = field(default_factory=lambda: ["en"])
    description: str = "A vision-language model: frozen vision encoder(s), a trained adapter, a decoder-only LLM."
    notes: list[str] = field(default_factory=list)


def write_card(folder: str | Path, given: dict, repo_id: str | None = None, results: Path | None = None) -> Path:
    """Writes README.md: a new card, or what is given into the card that is there. Returns its path.

    Args:
        given: fields of [`CardFacts`].
        repo_id, results: as in [`render_card`].
    """
    path = Path(folder) / "README.md"
    if path.is_file():
        check_is_whole(Path(folder))
        card = update_card(ModelCard.load(path), given, repo_id)
        if results:
            add_results(card, read_results(results), model_name(path.parent, repo_id))
    else:
        card = render_card(folder, CardFacts(**given), repo_id, results)
    write_whole(path, str(card))
    return path


def update_card(card: ModelCard, given: dict, repo_id: str | None) -> ModelCard:
    """The card with the facts and the usage code that are given, and else as it was."""
    for name, value in given.items():
        card.data[name] = value or None
    if repo_id:
        card.text = with_repo(card.text, repo_id)
    return card


def add_results(card: ModelCard, results: list[EvalResult], name: str):
    """Puts scores into a card; of what was measured before the same counts no more."""
    before = card.data.eval_results or []
    results = [old for old in before if not any(old.is_equal_except_value(new) for new in results)] + results
    card.data.model_name, card.data.eval_results = card.data.model_name or name, results
    card.text = with_evaluation(card.text, evaluation_section(results))


def model_name(folder: Path, repo_id: str | None) -> str:
    return (repo_id or folder.resolve().name).split("/")[-1]


def render_card(
    folder: str | Path, facts: CardFacts, repo_id: str | None = None, results: Path | None = None
) -> ModelCard:
    """A new card of a model folder.

    Args:
        facts: licence, base models, data sets, languages, notes.
        repo_id: what the usage code loads; by default the folder.
        results: an lmms-eval result file.
    """
    folder = Path(folder)
    check_is_whole(folder)
    config, name = AutoConfig.from_pretrained(folder), model_name(folder, repo_id)
    scores, training = read_results(results) if results else [], read_training(folder)
    card_data = ModelCardData(
        license=facts.license,
        base_model=facts.base_model or None,
        datasets=facts.datasets or None,
        language=facts.language,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["omnifusion", "multimodal", "vision-language"],
        model_name=name if scores else None,
        eval_results=scores or None,
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
        evaluation=evaluation_section(scores) if scores else "",
        notes=facts.notes,
    )
    return ModelCard(f"---\n{card_data}\n---\n\n{text}")


def evaluation_section(results: list[EvalResult]) -> Markdown:
    rows = [[result.dataset_name, result.metric_type, result.metric_value] for result in results]
    return Markdown(f"{EVALUATION}{table(['task', 'metric', 'value'], rows)}")


def with_evaluation(text: str, section: Markdown) -> str:
    """A card's text with this section of scores in the place of the one that stands there, else in front of the limits
    or at the end. A section that a person wrote stays, and stays alone."""
    ours = re.compile(re.escape(EVALUATION) + r"(\|.*\n?)+")
    if ours.search(text):
        return ours.sub(lambda _: f"{section}\n", text)
    if re.search("^#+ Evaluation", text, re.MULTILINE):
        return text
    before, heading, after = text.partition("\n## Limits")
    return f"{before.rstrip()}\n\n{section}\n{heading}{after}"


def with_repo(text: str, repo_id: str) -> str:
    """A card's text whose usage code loads `repo_id`."""
    return USAGE.sub(lambda found: found[1] + _quoted(repo_id), text)


def _quoted(name: str) -> Markdown:
    """As Python code, in a block of code."""
    return Markdown(json.dumps(name, ensure_ascii=False))


def describe_parts(config: OmniFusionConfig) -> list[dict]:
    """Rows of the architecture table, counted on a model without memory."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    vision, layers = config.vision_config, config.vision_feature_layer
    rows = []
    for index, encoder in enumerate(model.model.vision_tower.encoders):
        read = "all hidden states" if layers == "all" else f"hidden state {layers[index]}"
        what = (
            f"{encoder.config.model_type}, {vision.image_sizes[index]} px, {read} of "
            f"{encoder.config.num_hidden_layers} layers, width {vision.hidden_sizes[index]}"
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
    """The image strategy in words."""
    fit = code(preprocessing["image_fit"])
    if preprocessing["view_strategy"] == "whole":
        return Markdown(f"one view ({fit})")
    canvases = ", ".join(f"{rows} x {columns}" for rows, columns in preprocessing["grid_canvases"])
    return Markdown(f"a whole view ({fit}) and the tiles of the best canvas of {plain(canvases)}")


def read_training(folder: Path) -> dict:
    """What `omnifusion train` left beside the model, empty where it was made otherwise."""
    summary = folder / SUMMARY
    settings = json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {}
    parts = settings.get("trained_parameters", {})
    settings["trained_parameters"] = ", ".join(f"{part} {count:,}" for part, count in parts.items())
    return {name.replace("_", " "): value for name, value in settings.items() if value not in (None, "")}


def read_results(path: str | Path) -> list[EvalResult]:
    """The scores in an lmms-eval result file, for a card's metadata."""
    return [
        EvalResult("image-text-to-text", score.task, score.task, score.metric, round(score.value, 4))
        for score in read_scores(path)
    ]


def check_is_whole(folder: Path):
    """Raises `ValueError` for no folder, and for what a LoRA run leaves, which needs the model it started from."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}.")
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder} holds LoRA weights alone; first `omnifusion merge {folder} -o FOLDER`.")


def check_folder(folder: str | Path):
    """Loads the folder and generates one token. Raises `ValueError` for what would break its users."""
    from .inference import answer, load

    folder = Path(folder)
    check_is_whole(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no model folder: config.json is missing.")
    files = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*"))]
    files = list(filter_repo_objects(files, ignore_patterns=LEFT_OUT))
    if pickles := [file for file in files if file.endswith(PICKLES)]:
        raise ValueError(f"{folder} holds pickles {pickles}; remove them, weights go as safetensors.")
    if not (folder / "README.md").is_file():
        raise ValueError(f"{folder} has no model card; write it with `omnifusion card {folder}`.")
    auto_map = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map", {})
    if not auto_map or any(f"{name.split('.')[0]}.py" not in files for name in auto_map.values()):
        raise ValueError(f"{folder} lacks its code, which its card promises; write it with save_pretrained.")
    answer(*load(str(folder)), [], "Hello", max_new_tokens=1)


def push(folder: str | Path, repo_id: str, private: bool = False) -> str:
    """Checks the folder and its card, whose usage code is set to `repo_id`, then uploads; returns the URL."""
    validate_repo_id(repo_id)
    check_folder(folder)
    path = Path(folder) / "README.md"
    card = ModelCard.load(path)
    card.validate()
    write_whole(path, str(update_card(card, {}, repo_id)))
    api = HfApi()
    url = api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repo_id,
        folder_path=str(folder),
        commit_message="Upload OmniFusion model",
        ignore_patterns=LEFT_OUT,
    )
    return str(url)
