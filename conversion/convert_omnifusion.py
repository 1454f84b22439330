"""Converts the authors' release v1.1 into one folder that `AutoModelForImageTextToText.from_pretrained` loads.

    omnifusion convert v1.1 --source AIRI-Institute/OmniFusion --output omnifusion-v1_1

Weights stream in pieces. Every tensor of the source is mapped, split or dropped by a table (release_v1_1.py), every
tensor of the model is written exactly once. The output folder gets its name when it is complete.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

import torch
from transformers import AutoConfig, GenerationConfig

from omnifusion_hf import (
    OmniFusionConfig,
    OmniFusionForConditionalGeneration,
    OmniFusionImageProcessor,
    OmniFusionProcessor,
    add_special_tokens,
)
from omnifusion_hf import model as code
from omnifusion_hf.build.assemble import padded_vocab_size
from omnifusion_hf.build.chat_template import chat_template_for
from omnifusion_hf.build.tokenization import fast_tokenizer
from omnifusion_hf.hub import CardFacts, render_card
from omnifusion_hf.io import check_new, staged_folder
from omnifusion_hf.model.configuration_omnifusion import SPECIAL_TOKENS
from omnifusion_hf.model.modeling_omnifusion import AUTO_MAP

from . import release_v1_1 as release_keys
from .encoders import preprocessing_of
from .release_v1_1 import Release
from .weights import find_shards, in_pieces, locate, shard_tensors, write_weights


VISION = "openai/clip-vit-large-patch14-336"

FACTS = CardFacts(
    base_model=["AIRI-Institute/OmniFusion", VISION, "mistralai/Mistral-7B-v0.1"],
    datasets=["Lin-Chen/ShareGPT4V", "liuhaotian/LLaVA-Pretrain", "liuhaotian/LLaVA-Instruct-150K"],
    language=["en", "ru"],
    description="The authors' OmniFusion v1.1 (CLIP ViT-L/14-336, transformer adapter, Mistral-7B), converted.",
    notes=[
        "Answers are those of the authors' code in evaluation mode; their README leaves dropout on.",
        "The first token of an answer is kept, and prompts without an image work; both fail in the original code.",
        "Several images per prompt are accepted, but the model was trained with one.",
        "EXIF orientation is applied and transparent pixels are white, as in a viewer; the original ignores both.",
        "Training had no end-of-answer token: answers end after 50 tokens or at an EOS of the LLM's own.",
    ],
)


@dataclass(frozen=True)
class VisionTower:
    """The CLIP encoder's folder: its configuration, weight files and preprocessing."""

    config: object
    shards: list[Path]
    preprocessing: dict

    @classmethod
    def find(cls, folder: Path) -> "VisionTower":
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} is not a vision tower: config.json is missing; expected a CLIP model folder.")
        config = AutoConfig.from_pretrained(folder)
        config = getattr(config, "vision_config", config)
        if config.model_type != "clip_vision_model":
            raise ValueError(f"{folder} holds a `{config.model_type}`; v1.1 was trained with a CLIP vision tower.")
        return cls(config, find_shards(folder), preprocessing_of(folder))

    def tensors(self, num_layers: int):
        """Tensors of the first `num_layers` layers, with their names in the model."""
        for shard in self.shards:
            for name, tensor in shard_tensors(shard):
                for target, part in release_keys.VISION.place(name, tensor, shard):
                    layer = int(target.split(".")[2]) if target.startswith("encoder.layers.") else 0
                    if layer < num_layers:
                        yield f"model.vision_tower.encoders.0.{target}", part


def model_config(release: Release, tower: VisionTower, tokenizer) -> OmniFusionConfig:
    """The configuration that the files describe. Raises `ValueError` if they do not fit together."""
    adapter = release.read_projection()
    layer, linear = adapter.transformer_layer, adapter.tensors()["linear.weight"]
    text_config = AutoConfig.from_pretrained(release.llm_config.parent)
    for part, found, expected in (
        ("vision tower's width", tower.config.hidden_size, linear.shape[1]),
        ("LLM's width", text_config.hidden_size, linear.shape[0]),
    ):
        if found != expected:
            raise ValueError(
                f"The {part} is {found}, but projection.pt was made for {expected}; give the matching one."
            )
    text_config.vocab_size = padded_vocab_size(len(tokenizer))
    text_config.architectures = None
    preprocessing = tower.preprocessing
    vision = {"encoder_configs": [tower.config], "image_sizes": [crop_side(preprocessing, tower.config.image_size)]}
    published = {key: preprocessing[key] for key in ("image_mean", "image_std") if key in preprocessing}
    vision["image_normalizations"] = [published]
    return OmniFusionConfig(
        vision_config=vision,
        text_config=text_config,
        predicted_vocab_size=tokenizer.image_token_id,
        projector_type="transformer",
        projector_num_attention_heads=layer.self_attn.num_heads,
        projector_intermediate_size=adapter.tensors()["transformer_layer.linear1.bias"].shape[0],
        projector_dropout=layer.dropout.p,
        **{f"{name}_id": getattr(tokenizer, f"{name}_id") for name in SPECIAL_TOKENS},
    )


def crop_side(preprocessing: dict, default: int) -> int:
    """Side of the centre crop: a number in older files, height and width in newer ones."""
    size = preprocessing.get("crop_size", default)
    return size["height"] if isinstance(size, dict) else size


def with_special_rows(name: str, tensor: torch.Tensor, rows: int, vectors: dict[int, torch.Tensor]) -> torch.Tensor:
    """Pads the embedding or head to `rows`; new rows of the embedding hold the trained vectors."""
    padded = torch.zeros(rows, tensor.shape[1], dtype=tensor.dtype)
    padded[: len(tensor)] = tensor
    if name.endswith("embed_tokens.weight"):
        for row, vector in vectors.items():
            padded[row] = vector.to(tensor.dtype)
    return padded


def llm_tensors(shard: Path, rows: int, vectors: dict[int, torch.Tensor]):
    """The LLM's tensors of one shard, with their names in the model."""
    for name, tensor in shard_tensors(shard):
        for target, part in release_keys.LLM.place(name, tensor, shard):
            padded = target in ("lm_head.weight", "model.language_model.embed_tokens.weight")
            yield target, with_special_rows(target, part, rows, vectors) if padded else part


def all_tensors(release: Release, tower: VisionTower, config: OmniFusionConfig):
    """Yields (name in the model, tensor): adapter, vision tower, LLM."""
    for name, tensor in release.read_projection().tensors().items():
        yield from release_keys.PROJECTION.place(name, tensor, release.projection)
    yield from tower.tensors(config.vision_config.encoder_configs[0].num_hidden_layers - 1)  # for hidden state -2
    vectors = release.read_special_vectors(config.text_config.hidden_size)
    rows = {getattr(config, release_keys.SPECIAL_VECTORS[name]): vector for name, vector in vectors.items()}
    for shard in release.llm_shards:
        yield from llm_tensors(shard, config.text_config.vocab_size, rows)


def convert(source: str, vision: str, output: str, dtype: torch.dtype | None = None) -> Path:
    """Writes the model folder `output` and returns its path.

    Args:
        source: the release's folder, or a Hub id.
        vision: the CLIP vision tower's folder (vision model or whole CLIP), or a Hub id.
        dtype: of the written weights; by default each tensor keeps its own.

    Raises `ValueError` (what was found, expected, to do) without leaving an output folder.
    """
    check_new(output)
    release = Release.find(locate(source, release_keys.HUB_PATTERNS))
    tower = VisionTower.find(locate(vision, ["*.json", "*.safetensors", "pytorch_model.bin"]))
    tokenizer = add_special_tokens(fast_tokenizer(release.tokenizer))
    config = model_config(release, tower, tokenizer)
    with torch.device("meta"):
        model = OmniFusionForConditionalGeneration(config)
    with staged_folder(output, replace=False) as folder:
        sizes = [shard.stat().st_size for shard in release.llm_shards]
        pieces = in_pieces(all_tensors(release, tower, config), max(sizes) // 4)
        write_weights(folder, pieces, model, dtype)
        config.dtype = dtype or next(iter(release.read_special_vectors(config.text_config.hidden_size).values())).dtype
        config.architectures = [type(model).__name__]
        for file in Path(code.__file__).parent.glob("*_omnifusion*.py"):
            copyfile(file, folder / file.name)
        config.auto_map = dict(AUTO_MAP)
        config.save_pretrained(folder)
        generation_config(tokenizer).save_pretrained(folder)
        processor_for(config, tokenizer).save_pretrained(folder)
        render_card(folder, FACTS, repo_id=str(output)).save(folder / "README.md")
    return Path(output)


def generation_config(tokenizer) -> GenerationConfig:
    """The settings of the release's README, without its ban of EOS, which transformers ignores."""
    eos = tokenizer.eos_token_id
    words = [tokenizer.encode(word, add_special_tokens=False) for word in ("\n", ":")]
    return GenerationConfig(
        do_sample=False,
        num_beams=3,
        early_stopping=True,
        max_new_tokens=50,
        no_repeat_ngram_size=4,
        no_repeat_ngram_in_prompt=False,
        bad_words_ids=[*words, words[0][-1:]],
        forced_eos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=eos,
        bos_token_id=tokenizer.bos_token_id,
    )


def processor_for(config: OmniFusionConfig, tokenizer) -> OmniFusionProcessor:
    """Shortest edge and centre crop, no BOS, the release's prompt format."""
    vision, side = config.vision_config, config.vision_config.image_size
    image_processor = OmniFusionImageProcessor(
        size={"height": side, "width": side},
        image_fit="crop",
        **vision.image_normalizations[0],
    )
    return OmniFusionProcessor(
        image_processor, tokenizer, config.image_seq_length, chat_template=chat_template_for(tokenizer)
    )


if __name__ == "__main__":
    from omnifusion_hf.cli import main

    sys.exit(main(["convert", "v1.1", *sys.argv[1:]]))
