"""Vision encoders as their authors publish them, at tiny size: what to convert, and the features it has to have."""

import json
from pathlib import Path

import torch
from open_clip.model import CLIP
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModel, DonutSwinConfig, DonutSwinModel, MBartConfig, MBartForCausalLM
from transformers import VisionEncoderDecoderModel as EncoderDecoder

from conversion import convert_intern_vit, convert_open_clip, convert_texify


MEAN_AND_STD = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


class Published:
    """`command`: the converter's name. `layer`: whose output is read here. `prefix`: tokens that are no patches."""

    layer, prefix, size, image_mean_and_std = -1, 1, 32, MEAN_AND_STD

    def converted(self, folder: Path, change=None, name: str = "source", **settings) -> Path:
        """Writes `name` in `folder` and converts it."""
        return self.convert(str(self.write(folder / name, change, **settings)), str(folder / f"{name}-out"))

    @torch.no_grad()
    def difference(self, folder: Path, size: int | None = None) -> float:
        """Largest absolute difference over all layers between a converted folder and the original."""
        images = pixels(size or self.size)
        output = AutoModel.from_pretrained(folder).eval()(images, output_hidden_states=True)
        found, expected = self.compared(output), self.states(images)
        assert len(found) == len(expected) >= 3
        return max((a - b).abs().max().item() for a, b in zip(found, expected))

    def compared(self, output) -> list[torch.Tensor]:
        return output.hidden_states


def pixels(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def updated(tensors: dict, change) -> dict:
    """`change`: from the tensors to those that replace them; None removes one."""
    replaced = tensors | (change(tensors) if change else {})
    return {name: tensor.clone() for name, tensor in replaced.items() if tensor is not None}


def lively(model: torch.nn.Module) -> torch.nn.Module:
    """No parameter stays at zero or one."""
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.2
    return model.eval()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same_weights(first: Path, *others: Path) -> bool:
    one = weights(first)
    return all(
        one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        for other in map(weights, others)
    )


class InternVit(Published):
    """The settings that config.json of InternViT-6B-448px-V1-2 spells out; the original's computation, restated."""

    command, convert = "intern-vit", staticmethod(convert_intern_vit.convert)
    CONFIG = {"model_type": "intern_vit_6b", "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    CONFIG |= {"num_hidden_layers": 3, "image_size": 32, "patch_size": 8, "qkv_bias": False, "qk_normalization": True}
    CONFIG |= {"norm_type": "rms_norm", "layer_norm_eps": 1e-6, "hidden_act": "gelu", "use_flash_attn": True}
    CONFIG |= {"drop_path_rate": 0.1}
    PREPROCESSING = MEAN_AND_STD | {"size": 32, "crop_size": 32, "do_center_crop": True, "resample": 3}
    PREPROCESSING |= {"feature_extractor_type": "CLIPFeatureExtractor"}

    def __init__(self, **settings):
        self.config, generator = self.CONFIG | settings, torch.Generator().manual_seed(0)
        shapes = self.shapes(self.config).items()
        self.tensors = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes}

    @staticmethod
    def shapes(config: dict) -> dict[str, tuple]:
        """Names and shapes of the original's tensors."""
        width, hidden, side = config["hidden_size"], config["intermediate_size"], config["patch_size"]
        start = "embeddings."
        found = {f"{start}position_embedding": (1, (config["image_size"] // side) ** 2 + 1, width)}
        found |= {f"{start}class_embedding": (1, 1, width), f"{start}patch_embedding.bias": (width,)}
        found |= {f"{start}patch_embedding.weight": (width, 3, side, side)}
        for layer in range(config["num_hidden_layers"]):
            block = {"attn.qkv.weight": (3 * width, width), "attn.proj.weight": (width, width)}
            block |= {"mlp.fc1.weight": (hidden, width), "mlp.fc1.bias": (hidden,), "mlp.fc2.weight": (width, hidden)}
            vectors = ["attn.proj.bias", "mlp.fc2.bias", "norm1.weight", "norm2.weight", "ls1", "ls2"]
            vectors += ["norm1.bias", "norm2.bias"] if config["norm_type"] == "layer_norm" else []
            vectors += ["attn.q_norm.weight", "attn.k_norm.weight"] if config["qk_normalization"] else []
            block |= dict.fromkeys(vectors, (width,)) | ({"attn.qkv.bias": (3 * width,)} if config["qkv_bias"] else {})
            found |= {f"encoder.layers.{layer}.{name}": shape for name, shape in block.items()}
        return found

    def write(self, folder: Path, change=None, **settings) -> Path:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(self.config | settings))
        (folder / "preprocessor_config.json").write_text(json.dumps(self.PREPROCESSING))
        save_file(updated(self.tensors, change), folder / "model.safetensors")
        return folder

    def compared(self, output) -> list[torch.Tensor]:
        return [*output.hidden_states, output.last_hidden_state]

    def states(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Embeddings, the output of each block (pre-norm, layer scale) and the last of these again."""
        parts = [self.tensors[f"embeddings.{name}"] for name in ("patch_embedding.weight", "patch_embedding.bias")]
        patches = functional.conv2d(images, *parts, stride=self.config["patch_size"]).flatten(2).mT
        class_token = self.tensors["embeddings.class_embedding"].expand(len(images), -1, -1)
        hidden = torch.cat([class_token, patches], dim=1) + self.tensors["embeddings.position_embedding"]
        states = [hidden]
        for layer in range(self.config["num_hidden_layers"]):
            start = f"encoder.layers.{layer}."
            block = {name.removeprefix(start): tensor for name, tensor in self.tensors.items()}
            hidden = hidden + block["ls1"] * self.attention(self.norm(hidden, block, "norm1"), block)
            inner = linear(self.norm(hidden, block, "norm2"), block, "mlp.fc1")
            hidden = hidden + block["ls2"] * linear(functional.gelu(inner), block, "mlp.fc2")
            states.append(hidden)
        return [*states, hidden]

    def norm(self, hidden: torch.Tensor, block: dict, name: str) -> torch.Tensor:
        eps, weight = self.config["layer_norm_eps"], block[f"{name}.weight"]
        if self.config["norm_type"] == "layer_norm" and name.startswith("norm"):
            return functional.layer_norm(hidden, weight.shape, weight, block[f"{name}.bias"], eps)
        return functional.rms_norm(hidden, weight.shape, weight, eps)

    def attention(self, hidden: torch.Tensor, block: dict) -> torch.Tensor:
        """q, k and v from one matrix; q and k normalised over all heads."""
        query, key, value = linear(hidden, block, "attn.qkv").chunk(3, -1)
        if self.config["qk_normalization"]:
            query, key = self.norm(query, block, "attn.q_norm"), self.norm(key, block, "attn.k_norm")
        split = (self.config["num_attention_heads"], -1)
        heads = [part.unflatten(-1, split).transpose(1, 2) for part in (query, key, value)]
        mixed = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(-2)  # (B, tokens, width)
        return linear(mixed, block, "attn.proj")


def linear(hidden: torch.Tensor, block: dict, name: str) -> torch.Tensor:
    return functional.linear(hidden, block[f"{name}.weight"], block.get(f"{name}.bias"))


class OpenClip(Published):
    """A model of open_clip's own class, in the layout in which OpenCLIP publishes on the Hub."""

    command, convert, layer = "open-clip", staticmethod(convert_open_clip.convert), -2
    VISION = {"layers": 3, "width": 32, "head_width": 8, "mlp_ratio": 2.0, "patch_size": 8, "image_size": 32}
    TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    CONFIG = {"embed_dim": 24, "text_cfg": TEXT}
    PREPROCESS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    PREPROCESS |= {"interpolation": "bicubic", "resize_mode": "shortest"}

    def __init__(self, kind: type = CLIP, quick_gelu: bool = False, **vision):
        torch.manual_seed(0)
        self.settings = {"quick_gelu": quick_gelu} | vision
        self.model = lively(kind(24, self.VISION | vision, dict(self.TEXT), quick_gelu=quick_gelu))
        self.tensors = self.model.state_dict()

    def write(self, folder: Path, change=None, pickled: bool = False, **settings) -> Path:
        folder.mkdir()
        vision = self.VISION | self.settings | settings
        model = self.CONFIG | {"quick_gelu": vision.pop("quick_gelu"), "vision_cfg": vision}
        config = {"model_cfg": model, "preprocess_cfg": self.PREPROCESS}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        if pickled:
            torch.save(change(self.tensors) if change else self.tensors, folder / "open_clip_pytorch_model.bin")
        else:
            save_file(updated(self.tensors, change), folder / "open_clip_model.safetensors")
        return folder

    def compared(self, output) -> list[torch.Tensor]:
        return [*output.hidden_states[1:], output.pooler_output]

    def states(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Outputs of the blocks, class token in front, and the normalised class token, as open_clip gives them."""
        output = self.model.visual.forward_intermediates(images, output_fmt="NLC", output_extra_tokens=True)
        pairs = zip(output["image_intermediates_prefix"], output["image_intermediates"])
        self.model.visual.proj = None
        return [*(torch.cat(pair, dim=1) for pair in pairs), self.model.visual(images)]


class Texify(Published):
    """An encoder-decoder of transformers' own classes, which Texify's derive from."""

    command, convert, prefix, size = "texify", staticmethod(convert_texify.convert), 0, 60
    SWIN = {"image_size": [60, 60], "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]}
    SWIN |= {"window_size": 5, "layer_norm_eps": 1e-3}
    DECODER = {"vocab_size": 50, "d_model": 16, "decoder_layers": 1, "encoder_layers": 1, "is_decoder": True}
    DECODER |= {"decoder_ffn_dim": 16, "decoder_attention_heads": 2, "add_cross_attention": True}
    image_mean_and_std = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    # as published; this image processor is a class of the package texify
    PREPROCESSING = image_mean_and_std | {"size": {"height": 60, "width": 60}}
    PREPROCESSING |= {"image_processor_type": "VariableDonutImageProcessor"}

    def __init__(self, **settings):
        torch.manual_seed(0)
        encoder, decoder = DonutSwinModel(DonutSwinConfig(**self.SWIN | settings)), MBartConfig(**self.DECODER)
        self.model = lively(EncoderDecoder(encoder=encoder, decoder=MBartForCausalLM(decoder)))

    def write(self, folder: Path, change=None, **settings) -> Path:
        self.model.save_pretrained(folder)
        file, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
        config["encoder"] |= settings
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "preprocessor_config.json").write_text(json.dumps(self.PREPROCESSING))
        save_file(updated(load_file(file), change), file, metadata={"format": "pt"})
        return folder

    def states(self, images: torch.Tensor) -> list[torch.Tensor]:
        return self.model.encoder(images, output_hidden_states=True).hidden_states
