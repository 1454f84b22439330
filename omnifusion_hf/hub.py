# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Folders for the Hub: with a model card, checked before they are pushed."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.utils import filter_repo_objects
from transformers import AutoConfig

from .configuration_omnifusion import OmniFusionConfig
from .evaluation.results import read_scores
from .files import write_whole
from .training.progress import LOSS_PLOT, SUMMARY


TEMPLATE = Path(__file__).parent / "model_card.md"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# What training leaves in a model folder and nobody needs to load it.
LEFT_OUT = ["training_args.bin", "checkpoint-*"]


@dataclass
class CardFacts:
    """What a card says that the folder's configuration does not know."""

    license: str = "apache-2.0"
    base_model: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    language: list[str] = field(default_factory=lambda: ["en"])
    description: str = "A vision-language model: frozen vision encoder(s), a trained adapter, a decoder-only LLM."
    notes: list[str] = field(default_factory=list)


def render_card(
    folder: str | Path, facts: CardFacts, repo_id: str | None = None, results: Path | None = None
) -> ModelCard:
    """The card of a model folder.

    Args:
        facts: licence, base models, data sets, languages, notes.
        repo_id: what the usage code loads; by default the folder.
        results: an lmms-eval result file.
    """
    folder = Path(folder)
    check_is_whole(folder)
    config, name = AutoConfig.from_pretrained(folder), (repo_id or folder.resolve().name).split("/")[-1]
    scores = read_results(results) if results else []
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
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        name=name,
        repo=repo_id or str(folder),
        description=facts.description,
        parts=describe_parts(config),
        views=describe_views(preprocessing),
        tokens_per_view=config.image_seq_length,
        image_size=config.vision_config.image_size,
        training=read_training(folder),
        loss_plot=LOSS_PLOT if (folder / LOSS_PLOT).is_file() else None,
        results=scores,
        results_file=results and Path(results).name,
        notes=facts.notes,
    )


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


def describe_views(preprocessing: dict) -> str:
    """The image strategy in words."""
    if preprocessing["view_strategy"] == "whole":
        return f"one view (`{preprocessing['image_fit']}`)"
    canvases = ", ".join(f"{rows} x {columns}" for rows, columns in preprocessing["grid_canvases"])
    return f"a whole view (`{preprocessing['image_fit']}`) and the tiles of the best canvas of {canvases}"


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
    from .ask import answer, load

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
    check_folder(folder)
    path = Path(folder) / "README.md"
    ModelCard.load(path).validate()
    write_whole(path, re.sub(r'from_pretrained\("[^"]+"', f'from_pretrained("{repo_id}"', path.read_text("utf-8")))
    api = HfApi()
    url = api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repo_id,
        folder_path=str(folder),
        commit_message="Upload OmniFusion model",
        ignore_patterns=LEFT_OUT,
    )
    return str(url)
