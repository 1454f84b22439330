"""InternViT's published layout in transformers' InternVL vision model: features equal the original's, restated."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModel

from conversion.convert_intern_vit import KEYS, convert, vision_config
from conversion.weights import WrittenTensors
from omnifusion_hf import OmniFusionVisionModel
from omnifusion_hf.build.assemble import assemble_vision_config
from omnifusion_hf.cli import main


WIDTH, HEADS, FEED_FORWARD, LAYERS, PATCH, SIZE = 32, 4, 48, 3, 8, 32
# The settings that config.json of InternViT-6B-448px-V1-2 spells out, at tiny size.
CONFIG = {
    "model_type": "intern_vit_6b",
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "intermediate_size": FEED_FORWARD,
    "num_hidden_layers": LAYERS,
    "image_size": SIZE,
    "patch_size": PATCH,
    "qkv_bias": False,
    "qk_normalization": True,
    "norm_type": "rms_norm",
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
    "use_flash_attn": True,
    "drop_path_rate": 0.1,
}
PREPROCESSING = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": SIZE, "crop_size": SIZE}
PREPROCESSING |= {"feature_extractor_type": "CLIPFeatureExtractor", "do_center_crop": True, "resample": 3}


def shapes(config: dict) -> dict[str, tuple]:
    """Names and shapes of the original's tensors."""
    width, hidden = config["hidden_size"], config["intermediate_size"]
    positions = (config["image_size"] // config["patch_size"]) ** 2 + 1
    found = {
        "embeddings.class_embedding": (1, 1, width),
        "embeddings.position_embedding": (1, positions, width),
        "embeddings.patch_embedding.weight": (width, 3, config["patch_size"], config["patch_size"]),
        "embeddings.patch_embedding.bias": (width,),
    }
    for layer in range(config["num_hidden_layers"]):
        block = {"attn.qkv.weight": (3 * width, width), "attn.proj.weight": (width, width), "attn.proj.bias": (width,)}
        block |= {"mlp.fc1.weight": (hidden, width), "mlp.fc1.bias": (hidden,)}
        block |= {"mlp.fc2.weight": (width, hidden), "mlp.fc2.bias": (width,)}
        vectors = ["norm1.weight", "norm2.weight", "ls1", "ls2"]
        vectors += ["norm1.bias", "norm2.bias"] if config["norm_type"] == "layer_norm" else []
        vectors += ["attn.q_norm.weight", "attn.k_norm.weight"] if config["qk_normalization"] else []
        block |= {"attn.qkv.bias": (3 * width,)} if config["qkv_bias"] else {}
        found |= {f"encoder.layers.{layer}.{name}": shape for name, shape in block.items()}
        found |= {f"encoder.layers.{layer}.{name}": (width,) for name in vectors}
    return found


def random_tensors(config: dict) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes(config).items()}


def reference_states(tensors: dict, config: dict, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Embeddings and the output of each block: pre-norm, fused qkv, q and k normalised over all heads, layer scale."""
    patches = functional.conv2d(
        pixels,
        tensors["embeddings.patch_embedding.weight"],
        tensors["embeddings.patch_embedding.bias"],
        stride=config["patch_size"],
    )
    class_token = tensors["embeddings.class_embedding"].expand(len(pixels), -1, -1)
    hidden = torch.cat([class_token, patches.flatten(2).mT], dim=1) + tensors["embeddings.position_embedding"]
    states = [hidden]
    for layer in range(config["num_hidden_layers"]):
        start = f"encoder.layers.{layer}."
        block = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
        hidden = hidden + block["ls1"] * attention(norm(hidden, block, "norm1", config), block, config)
        inner = functional.linear(norm(hidden, block, "norm2", config), block["mlp.fc1.weight"], block["mlp.fc1.bias"])
        outer = functional.linear(functional.gelu(inner), block["mlp.fc2.weight"], block["mlp.fc2.bias"])
        hidden = hidden + block["ls2"] * outer
        states.append(hidden)
    return states


def norm(hidden: torch.Tensor, block: dict, name: str, config: dict) -> torch.Tensor:
    eps, weight = config["layer_norm_eps"], block[f"{name}.weight"]
    if config["norm_type"] == "layer_norm" and name.startswith("norm"):
        return functional.layer_norm(hidden, weight.shape, weight, block[f"{name}.bias"], eps)
    return functional.rms_norm(hidden, weight.shape, weight, eps)


def attention(hidden: torch.Tensor, block: dict, config: dict) -> torch.Tensor:
    query, key, value = functional.linear(hidden, block["attn.qkv.weight"], block.get("attn.qkv.bias")).chunk(3, -1)
    if config["qk_normalization"]:
        query, key = norm(query, block, "attn.q_norm", config), norm(key, block, "attn.k_norm", config)
    heads = [part.unflatten(-1, (config["num_attention_heads"], -1)).transpose(1, 2) for part in (query, key, value)]
    mixed = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(-2)  # (B, tokens, width)
    return functional.linear(mixed, block["attn.proj.weight"], block["attn.proj.bias"])


def write_folder(folder: Path, config: dict, tensors: dict) -> Path:
    """The authors' layout on the Hub."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    save_file(tensors, folder / "model.safetensors")
    return folder


def pixels() -> torch.Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def difference(expected: list[torch.Tensor], folder: Path) -> float:
    """Largest absolute difference over embeddings, all blocks and the output."""
    output = AutoModel.from_pretrained(folder).eval()(pixels(), output_hidden_states=True)
    found = [*output.hidden_states, output.last_hidden_state]
    expected = [*expected, expected[-1]]
    assert len(found) == len(expected) == LAYERS + 2
    return max((a - b).abs().max().item() for a, b in zip(found, expected))


VARIANTS = {
    "InternViT-6B": {},
    "InternViT-300M": {"norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True},
    "biased": {"qkv_bias": True},
    "layer norm": {"norm_type": "layer_norm"},
    "another eps": {"qk_normalization": False, "layer_norm_eps": 0.1},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_equal_those_of_the_original(variant, tmp_path):
    config = CONFIG | VARIANTS[variant]
    tensors = random_tensors(config)
    folder = convert(str(write_folder(tmp_path / "source", config, tensors)), str(tmp_path / "out"))
    assert difference(reference_states(tensors, config, pixels()), folder) <= 1e-5


def swapped_parts(tensors: dict) -> dict:
    query, key, value = tensors["encoder.layers.1.attn.qkv.weight"].chunk(3)
    return tensors | {"encoder.layers.1.attn.qkv.weight": torch.cat([value, key, query])}


def exchanged(tensors: dict, one: str, other: str) -> dict:
    one, other = f"encoder.layers.0.{one}", f"encoder.layers.0.{other}"
    return tensors | {one: tensors[other].clone(), other: tensors[one].clone()}


WRONG = {
    "query and value swapped": swapped_parts,
    "norm of q unlike k's": lambda t: exchanged(t, "attn.q_norm.weight", "norm1.weight"),
    "layer scales exchanged": lambda t: exchanged(t, "ls1", "ls2"),
    "norms exchanged": lambda t: exchanged(t, "norm1.weight", "norm2.weight"),
    "another class token": lambda t: t | {"embeddings.class_embedding": -t["embeddings.class_embedding"]},
}


@pytest.mark.parametrize("mistake", WRONG)
def test_the_comparison_sees_a_wrong_conversion(mistake, tmp_path):
    """Control: each would be the mistake of a converter, and none passes the bound."""
    tensors = random_tensors(CONFIG)
    source = write_folder(tmp_path / "source", CONFIG, WRONG[mistake](tensors))
    assert difference(reference_states(tensors, CONFIG, pixels()), convert(str(source), str(tmp_path / "out"))) > 1e-3


def test_shards_and_pickles_give_the_same_encoder(tmp_path):
    from release import shard

    tensors = random_tensors(CONFIG)
    whole = write_folder(tmp_path / "whole", CONFIG, tensors)
    shard(shutil.copytree(whole, tmp_path / "shards"), 3)
    pickled = shutil.copytree(whole, tmp_path / "pickled")
    torch.save(tensors, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    folders = [convert(str(tmp_path / name), str(tmp_path / f"{name}-out")) for name in ("whole", "shards", "pickled")]
    first, *others = (load_file(folder / "model-00001-of-00001.safetensors") for folder in folders)
    for other in others:
        assert first.keys() == other.keys() and all(torch.equal(first[name], other[name]) for name in first)


def test_the_folder_is_an_encoder_here(tmp_path):
    tensors = random_tensors(CONFIG)
    folder = convert(str(write_folder(tmp_path / "source", CONFIG, tensors)), str(tmp_path / "out"))
    config = assemble_vision_config([str(folder)])
    assert config.image_normalizations == [{key: PREPROCESSING[key] for key in ("image_mean", "image_std")}]
    tower = OmniFusionVisionModel(config, [-1]).eval()
    assert tower.encoders[0].load_state_dict(AutoModel.from_pretrained(folder).state_dict()).missing_keys == []
    with torch.no_grad():
        [features] = tower(pixels()).features
    expected = reference_states(tensors, CONFIG, pixels())
    torch.testing.assert_close(features, expected[-1][:, 1:], atol=1e-5, rtol=0)
    assert not torch.allclose(features, expected[-2][:, 1:], atol=1e-2)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert (processor.size, processor.crop_size) == ({"shortest_edge": SIZE}, {"height": SIZE, "width": SIZE})


def test_the_6b_fits_at_its_real_size_by_the_authors_defaults(tmp_path):
    """Names and shapes, without memory for them; of V1-2's settings only those that differ from the defaults."""
    given = {"model_type": "intern_vit_6b", "num_hidden_layers": 45, "image_size": 448}
    (tmp_path / "config.json").write_text(json.dumps(given))
    config = vision_config(tmp_path)
    with torch.device("meta"):
        encoder = AutoModel.from_config(config)
    full = CONFIG | given | {"hidden_size": 3200, "intermediate_size": 12800, "patch_size": 14}
    entries = WrittenTensors({name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()})
    for name, shape in shapes(full).items():
        entries.add(dict(KEYS.place(name, torch.empty(shape, device="meta"), "")), "")
    entries.check_complete()
    assert (config.norm_type, config.use_qk_norm, config.num_attention_heads) == ("rms_norm", True, 25)
    assert 5.5e9 < sum(parameter.numel() for parameter in encoder.parameters()) < 5.6e9


BROKEN = {
    "unknown": (lambda t: t.update(bonus=torch.zeros(1)), "unknown tensor `bonus`"),
    "missing": (lambda t: t.pop("encoder.layers.0.ls2"), "`encoder.layer.0.lambda_2`"),
    "missing half": (
        lambda t: t.pop("encoder.layers.0.attn.qkv.weight"),
        "`encoder.layer.0.attention.k_proj",
    ),
    "misshapen": (
        lambda t: t.update({"embeddings.position_embedding": torch.zeros(1, 26, WIDTH)}),
        r"`embeddings.position_embeddings` has shape \(1, 26, 32\)",
    ),
    "cut": (
        lambda t: t.update({"encoder.layers.0.attn.qkv.weight": torch.zeros(2 * WIDTH, WIDTH)}),
        "`encoder.layer.0.attention.q_proj.weight` has shape",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_every_tensor_is_accounted_for(case, tmp_path):
    change, message = BROKEN[case]
    tensors = random_tensors(CONFIG)
    change(tensors)
    source = write_folder(tmp_path / "source", CONFIG, tensors)
    with pytest.raises(ValueError, match=message):
        convert(str(source), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


MISTAKES = {
    "another model": ({"model_type": "internvl_chat"}, "holds a `internvl_chat`"),
    "another norm": ({"norm_type": "batch_norm"}, "norm_type is 'batch_norm'"),
    "eps of q and k": ({"layer_norm_eps": 1e-5}, "normalises queries and keys"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_settings_without_a_counterpart_are_refused(case, tmp_path, capsys):
    change, message = MISTAKES[case]
    source = write_folder(tmp_path / "source", CONFIG | change, random_tensors(CONFIG))
    assert main(["convert", "intern-vit", "--source", str(source), "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_missing_files_are_named(tmp_path):
    source = write_folder(tmp_path / "source", CONFIG, random_tensors(CONFIG))
    for name, message in {
        "preprocessor_config.json": "gives no .*image_mean",
        "config.json": "config.json is missing",
    }.items():
        (source / name).unlink()
        with pytest.raises(ValueError, match=message):
            convert(str(source), str(tmp_path / "out"))


def test_an_existing_folder_is_not_replaced(tmp_path):
    source = write_folder(tmp_path / "source", CONFIG, random_tensors(CONFIG))
    with pytest.raises(ValueError, match="exists and is not replaced"):
        convert(str(source), str(source))
    assert (source / "model.safetensors").is_file()
