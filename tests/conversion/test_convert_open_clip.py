"""OpenCLIP's vision towers in transformers' CLIP: features equal those of open_clip's classes; the rest is refused."""

import json
from pathlib import Path

import open_clip
import pytest
import tiny
import torch
from open_clip.model import CLIP, CLIPVisionCfg, CustomTextCLIP, _build_vision_tower
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel

from conversion.convert_open_clip import KEYS, PLAIN, activation, convert, image_processor, vision_config
from conversion.weights import WrittenTensors
from omnifusion_hf import OmniFusionVisionModel
from omnifusion_hf.build.assemble import assemble_vision_config
from omnifusion_hf.cli import main


VISION = {"layers": 3, "width": 32, "head_width": 8, "mlp_ratio": 2.0, "patch_size": 8, "image_size": 32}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
PREPROCESS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bicubic", "resize_mode": "shortest"}


def tiny_model(kind: type = CLIP, quick_gelu: bool = False, **vision) -> torch.nn.Module:
    """A random model of open_clip's own class; no parameter stays at zero or one."""
    torch.manual_seed(0)
    model = kind(24, VISION | vision, dict(TEXT), quick_gelu=quick_gelu).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def write_folder(folder: Path, tensors: dict, quick_gelu: bool = False, safe: bool = True, **vision) -> Path:
    """The layout in which OpenCLIP publishes on the Hub."""
    folder.mkdir()
    model = {"embed_dim": 24, "vision_cfg": VISION | vision, "text_cfg": TEXT, "quick_gelu": quick_gelu}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": PREPROCESS}))
    if safe:
        save_file(tensors, folder / "open_clip_model.safetensors")
    else:
        torch.save(tensors, folder / "open_clip_pytorch_model.bin")
    return folder


@torch.no_grad()
def original_states(model, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of the blocks, class token in front, as open_clip gives them."""
    output = model.visual.forward_intermediates(pixels, output_fmt="NLC", output_extra_tokens=True)
    pairs = zip(output["image_intermediates_prefix"], output["image_intermediates"])
    return [torch.cat(pair, dim=1) for pair in pairs]


def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def difference(model, folder: Path) -> float:
    """Largest absolute difference over all blocks and the normalised class token."""
    output = AutoModel.from_pretrained(folder).eval()(pixels(), output_hidden_states=True)
    model.visual.proj = None
    expected = [*original_states(model, pixels()), model.visual(pixels())]
    found = [*output.hidden_states[1:], output.pooler_output]
    assert len(expected) == len(found) == 4
    return max((a - b).abs().max().item() for a, b in zip(expected, found))


VARIANTS = {
    "gelu": {},
    "quick gelu": {"quick_gelu": True},
    "tanh, eps": {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-2}},
    "fixed positions": {"pos_embed_type": "sin_cos_2d"},
    "text tower of its own": {"kind": CustomTextCLIP},
    "narrow feed-forward layers": {"mlp_ratio": 1.53},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_equal_those_of_open_clip(variant, tmp_path):
    options = dict(VARIANTS[variant])
    model = tiny_model(**options)
    options.pop("kind", None)
    source = write_folder(tmp_path / "source", model.state_dict(), **options)
    assert difference(model, convert(str(source), str(tmp_path / "out"))) <= 1e-5


QKV, POSITIONS = "visual.transformer.resblocks.1.attn.in_proj_weight", "visual.positional_embedding"
WRONG = {
    "GELU for QuickGELU": ({"quick_gelu": False}, None),
    "query and value swapped": ({}, lambda t: t.update({QKV: torch.cat(t[QKV].chunk(3)[::-1])})),
    "another eps": ({"norm_kwargs": {"eps": 1e-2}}, None),
    "another class token": ({}, lambda t: t["visual.class_embedding"].neg_()),
    "positions shifted": ({}, lambda t: t.update({POSITIONS: t[POSITIONS].roll(1, 0)})),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_the_comparison_sees_a_wrong_conversion(mistake, tmp_path):
    """Control: each would be the mistake of a converter, and none passes the bound."""
    options, damage = WRONG[mistake]
    model = tiny_model(quick_gelu=True)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if damage:
        damage(tensors)
    source = write_folder(tmp_path / "source", tensors, **{"quick_gelu": True} | options)
    assert difference(model, convert(str(source), str(tmp_path / "out"))) > 1e-3


def test_pickles_and_training_checkpoints_give_the_same_encoder(tmp_path):
    tensors = tiny_model().state_dict()
    checkpoint = {"epoch": 3, "name": "run", "state_dict": {f"module.{name}": t for name, t in tensors.items()}}
    sources = [
        write_folder(tmp_path / "safe", tensors),
        write_folder(tmp_path / "pickle", tensors, safe=False),
        write_folder(tmp_path / "training", checkpoint, safe=False),
    ]
    folders = [convert(str(source), str(tmp_path / f"{source.name}-out")) for source in sources]
    first, *others = (load_file(folder / "model-00001-of-00001.safetensors") for folder in folders)
    for other in others:
        assert first.keys() == other.keys() and all(torch.equal(first[name], other[name]) for name in first)
    assert not torch.equal(first["embeddings.class_embedding"], tiny_model(CustomTextCLIP).visual.class_embedding)


def test_the_folder_is_an_encoder_here(tmp_path):
    model = tiny_model()
    folder = convert(str(write_folder(tmp_path / "source", model.state_dict())), str(tmp_path / "out"))
    config = assemble_vision_config([str(folder)])
    assert config.image_normalizations == [{"image_mean": PREPROCESS["mean"], "image_std": PREPROCESS["std"]}]
    tower = OmniFusionVisionModel(config, [-2]).eval()
    missing = tower.encoders[0].load_state_dict(AutoModel.from_pretrained(folder).state_dict(), strict=False)
    assert missing.missing_keys == []
    with torch.no_grad():
        [features] = tower(pixels()).features
    expected = original_states(model, pixels())
    torch.testing.assert_close(features, expected[-2][:, 1:], atol=1e-5, rtol=0)
    assert not torch.allclose(features, expected[-1][:, 1:], atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_weights_have_the_given_or_the_stored_dtype(dtype, tmp_path):
    source = write_folder(tmp_path / "source", tiny_model().half().state_dict())
    folder = convert(str(source), str(tmp_path / "out"), dtype=dtype)
    assert AutoModel.from_pretrained(folder).dtype is (dtype or torch.float16)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_images_are_prepared_as_open_clip_does(mode, tmp_path):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    settings = PREPROCESS | {"resize_mode": mode, "mean": tuple(PREPROCESS["mean"]), "std": tuple(PREPROCESS["std"])}
    image_processor(settings, 32).save_pretrained(tmp_path)
    image = tiny.image(0, (60, 90))  # odd margins are cropped one pixel apart
    expected = image_transform_v2(PreprocessCfg(size=32, **settings), is_train=False)(image)
    found = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"][0]
    assert (found - expected).abs().max() < 0.05  # one step of 8 bit colour is 0.01
    other = "squash" if mode == "shortest" else "shortest"
    wrong = image_transform_v2(PreprocessCfg(size=32, **settings | {"resize_mode": other}), is_train=False)(image)
    assert (found - wrong).abs().max() > 0.2


def plain_names() -> list[str]:
    """Models of open_clip whose towers are plain, by what open_clip itself says of them."""
    towers = {name: open_clip.get_model_config(name)["vision_cfg"] for name in open_clip.list_models()}
    same = {name: getattr(CLIPVisionCfg(), name) for name in PLAIN}
    return [
        name
        for name, vision in towers.items()
        if isinstance(vision["layers"] if "layers" in vision else 12, int)
        and all((vision.get(setting) or default) == default for setting, default in same.items())
    ]


@pytest.mark.parametrize("name", plain_names())
def test_every_plain_tower_fits_at_its_real_size(name):
    """Names and shapes of open_clip's own class, without memory for them."""
    model = open_clip.get_model_config(name)
    with torch.device("meta"):
        tower = _build_vision_tower(model["embed_dim"], CLIPVisionCfg(**model["vision_cfg"]))
        encoder = AutoModel.from_config(vision_config(model))
    entries = WrittenTensors({name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()})
    for key, tensor in tower.state_dict().items():
        entries.add(dict(KEYS.place(f"visual.{key}", tensor, name)), "")
    entries.check_complete()


def test_every_other_tower_of_open_clip_is_refused():
    plain = set(plain_names())
    assert {"ViT-bigG-14", "ViT-L-14-336-quickgelu", "ViT-B-16-plus-240"} <= plain
    others = [name for name in open_clip.list_models() if name not in plain]
    assert {"RN50", "ViT-B-16-SigLIP", "coca_ViT-L-14", "ViT-L-14-CLIPA", "ViT-M-16-alt"} <= set(others)
    for name in others:
        with pytest.raises(ValueError, match="plain vision transformers"):
            vision_config(open_clip.get_model_config(name))


REFUSED = {
    "no_ln_pre": (True, "no LayerNorm before the blocks"),
    "attentional_pool": (True, "attentional pooling"),
    "ls_init_value": (1e-4, "LayerScale"),
    "patch_dropout": (0.5, "patch dropout"),
    "qk_norm": (True, "norms of queries and keys"),
    "block_type": ("custom", "custom attention blocks"),
    "pool_type": ("avg", "pooling"),
    "timm_model_name": ("vit_tiny", "timm"),
    "layers": ([1, 1, 1, 1], "ResNet"),
    "image_size": ([32, 64], "must be square"),
    "norm_kwargs": ({"elementwise_affine": False}, "only eps is configurable"),
    "act_kwargs": ({"inplace": True}, "no counterpart"),
    "rotary": (True, r"does not know: \['rotary'\]"),
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_clip_cannot_express_is_refused_by_name(setting, tmp_path):
    value, message = REFUSED[setting]
    source = write_folder(tmp_path / "source", {"x": torch.zeros(1)}, **{setting: value})
    with pytest.raises(ValueError, match=message):
        convert(str(source), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("quick_gelu, act_kwargs, name", [(True, None, "quick_gelu"), (False, {}, "gelu")])
def test_an_activation_has_a_name_in_transformers_or_is_refused(quick_gelu, act_kwargs, name):
    assert activation(quick_gelu, act_kwargs) == name
    with pytest.raises(ValueError, match="no counterpart"):
        activation(True, {"approximate": "tanh"})


BROKEN = {
    "unknown": (lambda t: t.update({"visual.bonus": torch.zeros(1)}), "unknown tensor `visual.bonus`"),
    "missing": (lambda t: t.pop("visual.ln_pre.weight"), "`pre_layrnorm.weight`"),
    "misshapen": (
        lambda t: t.update({"visual.positional_embedding": torch.zeros(26, 32)}),
        r"`embeddings.position_embedding.weight` has shape \(26, 32\)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_every_tensor_is_accounted_for(case, tmp_path):
    change, message = BROKEN[case]
    tensors = tiny_model().state_dict()
    change(tensors)
    source = write_folder(tmp_path / "source", tensors)
    with pytest.raises(ValueError, match=message):
        convert(str(source), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_name_with_a_tag_takes_the_tag_s_activation(tmp_path, monkeypatch):
    """`ViT-B-32` has GELU, but its tag `openai` was trained with QuickGELU; a file has what the name says."""
    weights = tmp_path / "weights.pt"
    monkeypatch.setattr("open_clip.get_model_config", lambda name: tiny_config())
    monkeypatch.setattr("open_clip.download_pretrained", lambda tag: str(weights))
    torch.save(tiny_model().state_dict(), weights)
    found = {tag: convert("ViT-B-32", str(tmp_path / f"out{i}"), tag) for i, tag in enumerate(NAMED)}
    for tag, name in NAMED.items():
        assert json.loads((found[tag] / "config.json").read_text())["hidden_act"] == name
    by_file = convert("ViT-B-32", str(tmp_path / "out"), str(weights))
    assert json.loads((by_file / "config.json").read_text())["hidden_act"] == "gelu"


NAMED = {"openai": "quick_gelu", "laion2b_s34b_b79k": "gelu"}


def tiny_config() -> dict:
    return {"embed_dim": 24, "vision_cfg": dict(VISION), "text_cfg": dict(TEXT)}


MISTAKES = {
    "unknown name": (["--source", "ViT-bigg-14"], "did you mean ['ViT-bigG-14'"),
    "unknown tag": (["--source", "ViT-bigG-14", "--pretrained", "laion"], "its tags are ['laion2b_s39b_b160k'"),
    "no tag": (["--source", "ViT-bigG-14"], "neither a file nor a pretrained tag"),
    "a tag too much": (["--source", "FOLDER", "--pretrained", "openai"], "has its own weights"),
    "no OpenCLIP folder": (["--source", "FOLDER"], "is not an OpenCLIP folder"),
}


def test_a_configuration_without_a_tower_is_named():
    with pytest.raises(ValueError, match=r"lacks \['vision_cfg'\]"):
        vision_config({"embed_dim": 24, "text_cfg": TEXT})


@pytest.mark.parametrize("case", MISTAKES)
def test_a_wrong_source_is_one_line(case, tmp_path, capsys):
    arguments, message = MISTAKES[case]
    arguments = [str(tmp_path) if argument == "FOLDER" else argument for argument in arguments]
    assert main(["convert", "open-clip", *arguments, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_without_the_package_a_name_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(ValueError, match=r"pip install 'omnifusion_hf\[open_clip\]'"):
        convert("ViT-bigG-14", str(tmp_path / "out"), "laion2b_s39b_b160k")
    source = write_folder(tmp_path / "source", tiny_model().state_dict())
    assert convert(str(source), str(tmp_path / "out")).is_dir()  # a folder needs no package
