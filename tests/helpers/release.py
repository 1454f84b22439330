"""Makes a checkpoint in the layout of the authors' release at tiny size, with a SentencePiece tokenizer of its own."""

import json
import sys
import types
from pathlib import Path
from unittest.mock import patch

import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, MistralConfig, MistralForCausalLM


WIDTH, SIZE = 32, 28
SIZES = {"hidden_size": WIDTH, "intermediate_size": 64, "num_attention_heads": 4}
TEXT = ["This is a dialog with AI assistant.", "What is the sky color on this image?", "Какого цвета небо?"]
TEXT += ["The sky is blue: two birds fly above a green hill.", "Describe the image, please!", "Небо синее."]


class Marker:
    """A pickle of this creates a file when it is read naively."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def write_tokenizer(folder: Path) -> int:
    """A Llama-style BPE model with byte fallback; returns its size."""
    folder.mkdir(parents=True)
    corpus = folder.parent / "corpus.txt"
    corpus.write_text("\n".join(TEXT * 20), encoding="utf-8")
    options = {"vocab_size": 340, "model_type": "bpe", "byte_fallback": True, "character_coverage": 1.0}
    options |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True}
    prefix = str(folder / "tokenizer")
    sentencepiece.SentencePieceTrainer.train(input=str(corpus), model_prefix=prefix, minloglevel=2, **options)
    corpus.unlink()
    (folder / "tokenizer.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).get_piece_size()


class VisualToGPTMapping(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2048, batch_first=True, norm_first=False)
        self.transformer_layer, self.linear = layer, nn.Linear(WIDTH, WIDTH)
        self.n_embeddings, self.embedding_dim = 4, WIDTH


def write_projection(path: Path):
    """A pickled module of a class `models.VisualToGPTMapping`, in training mode, as the release has it."""
    module = types.ModuleType("models")
    module.VisualToGPTMapping = VisualToGPTMapping
    with patch.dict(sys.modules, models=module), patch.object(VisualToGPTMapping, "__module__", "models"):
        torch.save(VisualToGPTMapping().to(torch.bfloat16).train(), path)


def write_release(folder: Path) -> Path:
    """The release's layout below `folder`; returns `folder`."""
    torch.manual_seed(0)
    root = folder / "OmniMistral-v1_1"
    vocab_size = write_tokenizer(root / "tokenizer")
    write_projection(root / "projection.pt")
    names = ("USER", "BOT", "SOI", "EOI")
    vectors = {name: torch.randn(WIDTH, dtype=torch.bfloat16).requires_grad_() for name in names}
    torch.save(vectors, root / "special_embeddings.pt")
    sizes = SIZES | {"num_hidden_layers": 2, "num_key_value_heads": 2}
    config = MistralConfig(**sizes, vocab_size=vocab_size, initializer_range=0.3)
    MistralForCausalLM(config).to(torch.bfloat16).save_pretrained(root / "tuned-model")
    shard(root / "tuned-model")
    return folder


def shard(folder: Path, shards: int = 3):
    """Splits model.safetensors into files with an index, as large checkpoints come."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[number::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(**SIZES, num_hidden_layers=3, image_size=SIZE, patch_size=14, projection_dim=16)


def write_vision_tower(folder: Path, kind: str = "vision") -> Path:
    """A CLIP tower: `vision` alone, `clip` with its text half, or `bin` (vision alone as a pickled state dict)."""
    torch.manual_seed(1)
    vision = CLIPVisionModel(vision_config())
    if kind == "clip":
        text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        whole = CLIPModel(CLIPConfig(text_config=text, vision_config=vision_config().to_dict(), projection_dim=16))
        whole.vision_model.load_state_dict(vision.state_dict())
        whole.save_pretrained(folder)
    else:
        vision.save_pretrained(folder)
    if kind == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    preprocessing = {"crop_size": SIZE, "size": SIZE, "do_center_crop": True, "do_resize": True, "resample": 3}
    preprocessing |= {"image_mean": [0.48145466, 0.4578275, 0.40821073], "do_normalize": True}
    preprocessing |= {"image_std": [0.26862954, 0.26130258, 0.27577711]}
    preprocessing |= {"feature_extractor_type": "CLIPFeatureExtractor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder
