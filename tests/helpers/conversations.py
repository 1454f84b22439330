"""LLaVA-format training data from tiny images, and recipes over it: what the training tests run on."""

import json
from pathlib import Path

import tiny
import yaml
from tiny import assistant, user

from omnifusion_hf.training.collators import PaddingCollator
from omnifusion_hf.training.conversations import BadSamples, open_images
from omnifusion_hf.training.mixture import Source, load_data
from omnifusion_hf.training.preprocessing import ConversationEncoder


ANSWERS = ("The sky is blue.", "The grass is green and the sky is blue.", "Green.", "A red square above two circles.")


def item(*messages: dict) -> dict:
    """A raw sample, as the datasets give it: contents are lists of parts."""
    parts = [
        [{"type": "text", "text": m["content"]}] if isinstance(m["content"], str) else m["content"] for m in messages
    ]
    messages = [message | {"content": content} for message, content in zip(messages, parts)]
    return {"messages": messages, "name": f"sample of {len(messages)} turns"}


NONE = item(user("What colour is the grass?"), assistant("Green."))
ONE = item(user(tiny.image(1), "Sky?"), assistant("The sky is blue."), user("And?"), assistant("Привет!"))
TWO = item(user("Is ", tiny.image(2), " left of ", tiny.image(3), "?"), assistant("Yes, it is."))


def sample(index: int, **changes) -> dict:
    """A sample with one image and one question; answers differ in length from sample to sample."""
    turns = [turn("human", "<image>\nWhat colour is the sky?"), turn("gpt", ANSWERS[index % len(ANSWERS)])]
    return {"id": f"s{index}", "image": f"{index}.png", "conversations": turns} | changes


def turn(role: str, text: str) -> dict:
    return {"from": role, "value": text}


def write(folder: Path, samples: list) -> Path:
    """Writes the samples' images and their JSON file; returns the latter's path."""
    for index in range(len(samples)):
        tiny.image(index).save(folder / f"{index}.png")
    path = folder / "samples.json"
    path.write_text(json.dumps(samples), encoding="utf-8")
    return path


def write_mixture(folder: Path, *sources: dict) -> Path:
    path = folder / "mixture.yaml"
    path.write_text(yaml.safe_dump({"sources": sources}), encoding="utf-8")
    return path


def load(path: Path, policy: str = "error", seed: int = 0, **source):
    """Raw samples of a file; `source` are fields of [`Source`]."""
    return load_data(Source(str(path), **source), seed, BadSamples(policy))


def opened(sample: dict, max_image_pixels: int = 2**27) -> dict:
    """A raw sample with its images as RGB images."""
    return sample | {"messages": open_images(sample, max_image_pixels)}


def collate(processor, samples: list[dict], **encoder_options) -> dict:
    """A padded batch of raw samples."""
    encoder = ConversationEncoder(processor, **encoder_options)
    return PaddingCollator(processor.tokenizer.pad_token_id)([encoder(sample) for sample in samples])


def write_model(folder: Path, dtype=None, **changes) -> Path:
    """Saves a tiny model with its processor; `changes` are fields of its configuration."""
    config = tiny.config(**changes)
    tiny.model(config).to(dtype).save_pretrained(folder)
    tiny.processor(config).save_pretrained(folder)
    return folder


def write_recipe(folder: Path, model: Path, samples: list | None = None, **changes) -> Path:
    """A recipe of four steps on `samples`, by default eight; constant learning rate, CPU."""
    data = folder / "data"
    data.mkdir(parents=True)
    samples = samples or [sample(index) for index in range(8)]
    fields = {"model_name_or_path": str(model), "stage": "pretrain", "output_dir": str(folder / "out")}
    fields |= {"data_path": str(write(data, samples)), "learning_rate": 0.01}
    fields |= {"lr_scheduler_type": "constant", "per_device_train_batch_size": 2, "max_steps": 4, "save_steps": 2}
    fields |= {"logging_steps": 1, "use_cpu": True, "disable_tqdm": True, "report_to": "none"}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields | changes), encoding="utf-8")
    return path
