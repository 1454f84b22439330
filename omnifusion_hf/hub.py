# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Model cards, and checked uploads to the Hub."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copytree, ignore_patterns
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.utils import filter_repo_objects, validate_repo_id
from transformers import AutoConfig

from .io import LOSS_PLOT, SUMMARY, friendly_load_errors, named, read_json, write_whole
from .markdown import Markdown, code, fill, plain, table
from .model.configuration_omnifusion import OmniFusionConfig


TEMPLATE = Path(__file__).parent / "model_card.md"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# Files of training that a model does not need.
NOT_UPLOADED = ["training_args.bin", "checkpoint-*"]
# Files of an earlier upload that would be loaded instead of the new weights.
EARLIER_WEIGHTS = ["*.safetensors", "*.safetensors.index.json", "adapter_*"]
LORA = "adapter_config.json"
EVALUATION = "## Evaluation\n\nMeasured with lmms-eval or `omnifusion ask`.\n\n"  # followed by a table
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
    if (card := read_card(path.parent)) is not None:
        card = update_card(card, given, repo_id)
        if scores:
            add_results(card, as_results(scores), model_name(path.parent, repo_id))
    else:
        card = render_card(folder, CardFacts(**given), repo_id, scores)
    write_whole(path, str(card))
    return path


def read_card(folder: Path) -> ModelCard | None:
    """The card that somebody, or this module, wrote. PEFT leaves an empty form in the folder of a LoRA run."""
    path = folder / "README.md"
    with named(str(path)):
        card = ModelCard.load(path) if path.is_file() else None
    form = ModelCard.from_template(ModelCardData()).text.strip()
    return None if card is None or card.text.strip().startswith(form) else card


def check_card(folder: Path) -> ModelCard:
    """The card of a folder; raises `ValueError` if there is none."""
    if (card := read_card(folder)) is None:
        raise ValueError(f"{folder} has no model card; write it with `omnifusion card {folder}`.")
    return card


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
        facts: licence, base models (default: those that `omnifusion build` noted, or the one of LoRA weights), data
            sets, languages, notes.
        repo_id: the name that the usage code loads; default: the folder.
        scores: as `evaluation.results.read_scores` returns them.
    """
    folder = Path(folder)
    base, name = lora_base(folder), model_name(folder, repo_id)
    with friendly_load_errors(base or folder):
        config = AutoConfig.from_pretrained(base or folder)
    published = None if base is None else published_base(base, facts.base_model)
    results, training = as_results(scores), read_training(folder)
    card_data = ModelCardData(
        license=facts.license,
        base_model=published or facts.base_model or getattr(config, "built_from", None),
        base_model_relation="adapter" if published else None,
        datasets=facts.datasets or None,
        language=facts.language,
        library_name="peft" if published else "transformers",
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
        base=None if published is None else code(published),
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
    ours = re.compile(r"## Evaluation\n\nMeasured with lmms-eval.*\n\n(\|.*\n?)+")
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
    """Scores as metadata of a card."""
    return [
        EvalResult("image-text-to-text", score.task, score.task, score.metric, round(score.value, 4))
        for score in scores
    ]


def lora_base(folder: Path) -> str | None:
    """The model, a folder or Hub id, that LoRA weights are added to; None for the folder of a whole model. Raises
    `ValueError` for a missing folder."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}.")
    file = folder / LORA
    if not file.is_file():
        return None
    settings = read_json(file.read_bytes(), str(file))
    base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    if not base:
        raise ValueError(f"{file} names no base model; set its base_model_name_or_path.")
    return base


def published_base(base: str, ids: list[str]) -> str:
    """The Hub id of the model that LoRA weights are added to, which are useless without it. Raises `ValueError` if it
    is only on this machine."""
    name = ids[0] if ids else base
    if len(ids) > 1 or Path(name).exists() or Path(name).is_absolute():
        raise ValueError(
            f"these LoRA weights are added to the model {base}, which others do not have; push it, then name it in "
            "the card, `omnifusion card FOLDER --base-model YOU/BASE`; or push the whole model, as `omnifusion merge` "
            "writes it."
        )
    return name


def check_folder(folder: str | Path):
    """Loads the folder and generates one token. Raises `ValueError` for a folder that its users could not load."""
    from .inference import answer_question, load

    folder = Path(folder)
    entry = "config.json" if lora_base(folder) is None else "processor_config.json"  # LoRA's base has the other
    if not (folder / entry).is_file():
        raise ValueError(f"{folder} is not a model folder: {entry} is missing.")
    files = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*"))]
    files = list(filter_repo_objects(files, ignore_patterns=NOT_UPLOADED))
    if pickles := [file for file in files if file.endswith(PICKLES)]:
        raise ValueError(f"{folder} holds pickles {pickles}; remove them, and save weights as safetensors.")
    check_card(folder)
    auto_map = json.loads((folder / entry).read_text(encoding="utf-8")).get("auto_map", {})
    if not auto_map or any(f"{name.split('.')[0]}.py" not in files for name in auto_map.values()):
        raise ValueError(f"{folder} lacks the code that its card refers to; write it with save_pretrained.")
    answer_question(*load(str(folder)), [], "Hello", max_new_tokens=1)


@contextmanager
def as_published(folder: Path, base: str | None) -> Iterator[Path]:
    """The folder to upload: a copy in which LoRA weights name their base by its Hub id, or the folder itself."""
    if base is None:
        yield folder
        return
    with TemporaryDirectory() as copy:
        copytree(folder, copy, dirs_exist_ok=True, ignore=ignore_patterns(*NOT_UPLOADED))
        config = json.loads((folder / LORA).read_text(encoding="utf-8")) | {"base_model_name_or_path": base}
        (Path(copy) / LORA).write_text(json.dumps(config, indent=2), encoding="utf-8")
        yield Path(copy)


def check_rights(api: HfApi, repo_id: str, create_pr: bool = False) -> str:
    """The id with its owner, by default the user. Raises `ValueError` unless the Hub knows the user and lets them
    write to the repository's namespace. A pull request needs a repository that exists, and no right. What a
    fine-grained token permits is seen at the upload."""
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
    return f"{owner}/{repo_id.rpartition('/')[2]}"


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
    folder = Path(folder)
    base, card = lora_base(folder), check_card(folder)
    if create_pr and revision:
        raise ValueError(f"a pull request is for main; leave out --revision {revision}, or --create-pr.")
    api = HfApi()
    repo_id = check_rights(api, repo_id, create_pr)
    if base is not None:
        ids = card.data.base_model or []
        base = published_base(base, [ids] if isinstance(ids, str) else ids)
        if not api.repo_exists(base):
            raise ValueError(f"there is no {base} on the Hub, which the LoRA weights need; push it first.")
    check_folder(folder)
    card.validate()
    write_whole(folder / "README.md", str(update_card(card, {}, repo_id)))
    if not create_pr:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    with as_published(folder, base) as uploaded:
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=uploaded,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            ignore_patterns=NOT_UPLOADED,
            delete_patterns=EARLIER_WEIGHTS,
        )
    return commit.pr_url or commit.commit_url if create_pr else str(url)  # no request without a change
