"""OpenCLIP's names, tags, preprocessing and real sizes; features and refusals are in test_encoders.py."""

import json

import open_clip
import pytest
import tiny
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from open_clip.transform import PreprocessCfg, image_transform_v2
from published import OpenClip
from transformers import AutoImageProcessor, AutoModel

from conversion.convert_open_clip import KEYS, PLAIN, convert, image_processor, vision_config
from conversion.weights import WrittenTensors


@pytest.mark.parametrize("mode, other", [("shortest", "squash"), ("squash", "shortest")])
def test_images_are_prepared_as_open_clip_does(mode, other, tmp_path):
    means = {name: tuple(OpenClip.PREPROCESS[name]) for name in ("mean", "std")}
    settings = OpenClip.PREPROCESS | means | {"resize_mode": mode}
    image_processor(settings, 32).save_pretrained(tmp_path)
    image = tiny.image(0, (60, 90))  # odd margins are cropped one pixel apart
    found = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"][0]
    expected, wrong = (
        image_transform_v2(PreprocessCfg(size=32, **settings | {"resize_mode": each}), is_train=False)(image)
        for each in (mode, other)
    )
    assert (found - expected).abs().max() < 0.05  # one step of 8 bit colour is 0.01
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
    with pytest.raises(ValueError, match=r"lacks \['vision_cfg'\]"):
        vision_config({"embed_dim": 24, "text_cfg": {}})


def test_a_name_with_a_tag_takes_the_tag_s_activation(tmp_path, monkeypatch):
    """`ViT-B-32` has GELU, but its tag `openai` was trained with QuickGELU; a file has what the name says."""
    weights = str(tmp_path / "weights.pt")
    monkeypatch.setattr("open_clip.get_model_config", lambda name: OpenClip.CONFIG | {"vision_cfg": OpenClip.VISION})
    monkeypatch.setattr("open_clip.download_pretrained", lambda tag: weights)
    torch.save(OpenClip().tensors, weights)
    for tag, name in {"openai": "quick_gelu", "laion2b_s34b_b79k": "gelu", weights: "gelu"}.items():
        folder = convert("ViT-B-32", str(tmp_path / f"out {len(tag)}"), tag)
        assert json.loads((folder / "config.json").read_text())["hidden_act"] == name


MISTAKES = {
    "unknown name": (["--source", "ViT-bigg-14"], "did you mean ['ViT-bigG-14'"),
    "unknown tag": (["--source", "ViT-bigG-14", "--pretrained", "laion"], "its tags are ['laion2b_s39b_b160k'"),
    "no tag": (["--source", "ViT-bigG-14"], "neither a file nor a pretrained tag"),
    "a tag too much": (["--source", "FOLDER", "--pretrained", "openai"], "has its own weights"),
    "no OpenCLIP folder": (["--source", "FOLDER"], "is not an OpenCLIP folder"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_wrong_source_is_one_line(case, tmp_path, refused):
    arguments, message = MISTAKES[case]
    arguments = [tmp_path if argument == "FOLDER" else argument for argument in arguments]
    assert message in refused("convert", "open-clip", *arguments, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_the_package_a_name_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(ValueError, match=r"pip install 'omnifusion_hf\[open_clip\]'"):
        convert("ViT-bigG-14", str(tmp_path / "out"), "laion2b_s39b_b160k")
    assert OpenClip().converted(tmp_path).is_dir()  # a folder needs no package
