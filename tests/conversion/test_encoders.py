"""Converted encoders: features and sizes are the original's, every tensor is placed, all else is refused by name."""

import json
import shutil

import pytest
import torch
from open_clip.model import CustomTextCLIP
from published import InternVit, OpenClip, Texify, pixels, same_weights, weights
from release import shard
from transformers import AutoImageProcessor, AutoModel

from conversion import convert_intern_vit
from conversion.weights import WrittenTensors
from omnifusion_hf import OmniFusionVisionModel
from omnifusion_hf.build.assemble import assemble_vision_config


KINDS = [InternVit, OpenClip, Texify]
VARIANTS = {
    "InternViT-6B": (InternVit, {}),
    "InternViT-300M": (InternVit, {"norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True}),
    "InternViT, biased": (InternVit, {"qkv_bias": True}),
    "InternViT, layer norm": (InternVit, {"norm_type": "layer_norm"}),
    "InternViT, another eps": (InternVit, {"qk_normalization": False, "layer_norm_eps": 0.1}),
    "CLIP, gelu": (OpenClip, {}),
    "CLIP, quick gelu": (OpenClip, {"quick_gelu": True}),
    "CLIP, tanh, eps": (OpenClip, {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-2}}),
    "CLIP, fixed positions": (OpenClip, {"pos_embed_type": "sin_cos_2d"}),
    "CLIP, text tower of its own": (OpenClip, {"kind": CustomTextCLIP}),
    "CLIP, narrow feed-forward layers": (OpenClip, {"mlp_ratio": 1.53}),
    "Swin": (Texify, {}),
    "Swin, variant": (Texify, {"qkv_bias": False, "hidden_act": "relu", "window_size": 3}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_equal_those_of_the_original(variant, tmp_path):
    kind, settings = VARIANTS[variant]
    original = kind(**settings)
    folder = original.converted(tmp_path)
    for size in [original.size] + [84] * (kind is Texify):  # Swin takes any size
        assert original.difference(folder, size) <= 1e-5


LAYER, QKV = "encoder.layers.0.", "encoder.layers.1.attn.qkv.weight"
CLIP_QKV, POSITIONS = "visual.transformer.resblocks.1.attn.in_proj_weight", "visual.positional_embedding"
SWIN_BLOCK = "encoder.encoder.layers.0.blocks.0."
QUERY, VALUE = (f"{SWIN_BLOCK}attention.self.{part}.weight" for part in ("query", "value"))
WRONG = {
    "InternViT: query and value swapped": (InternVit, lambda t: {QKV: torch.cat(t[QKV].chunk(3)[::-1])}, {}),
    "layer scales exchanged": (InternVit, lambda t: {f"{LAYER}ls{n}": t[f"{LAYER}ls{3 - n}"] for n in (1, 2)}, {}),
    "CLIP: query and value swapped": (OpenClip, lambda t: {CLIP_QKV: torch.cat(t[CLIP_QKV].chunk(3)[::-1])}, {}),
    "positions shifted": (OpenClip, lambda t: {POSITIONS: t[POSITIONS].roll(1, 0)}, {}),
    "CLIP: GELU for QuickGELU": (OpenClip, None, {"quick_gelu": False}),
    "CLIP: another eps": (OpenClip, None, {"norm_kwargs": {"eps": 1e-2}}),
    "Swin: query and value swapped": (Texify, lambda t: {QUERY: t[VALUE], VALUE: t[QUERY]}, {}),
    "Swin: another eps": (Texify, None, {"layer_norm_eps": 0.1}),
    "Swin: another activation": (Texify, None, {"hidden_act": "relu"}),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_the_comparison_sees_a_wrong_conversion(mistake, tmp_path):
    """Control: each would be the mistake of a converter, and none passes the bound."""
    kind, change, settings = WRONG[mistake]
    original = kind(quick_gelu=True) if kind is OpenClip else kind()
    assert original.difference(original.converted(tmp_path, change, **settings)) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_is_an_encoder_here(kind, tmp_path):
    original = kind()
    folder = original.converted(tmp_path)
    config = assemble_vision_config([str(folder)])
    assert config.image_normalizations == [original.image_mean_and_std]
    num_patches = 64 if kind is Texify else 16
    assert (config.image_sizes, config.encoder_outputs[0].num_patches) == ([original.size], num_patches)
    tower = OmniFusionVisionModel(config, [original.layer]).eval()
    weights = AutoModel.from_pretrained(folder).state_dict()
    assert tower.encoders[0].load_state_dict(weights, strict=kind is not OpenClip).missing_keys == []
    images = pixels(original.size)
    with torch.no_grad():
        [features] = tower(images).features
        states = [state for state in original.states(images) if state.dim() == 3]
    expected = states[original.layer][:, original.prefix :]
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    other = expected.flip(1) if kind is Texify else states[{-1: -3, -2: -1}[original.layer]][:, 1:]  # control
    assert not torch.allclose(features, other, atol=1e-2)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert list(processor.image_mean) == original.image_mean_and_std["image_mean"]
    if kind is InternVit:
        assert (processor.size, processor.crop_size) == ({"shortest_edge": 32}, {"height": 32, "width": 32})


def test_shards_pickles_and_training_checkpoints_give_the_same_encoder(tmp_path):
    intern, clip = InternVit(), OpenClip()
    whole = intern.converted(tmp_path)
    shard(shutil.copytree(tmp_path / "source", tmp_path / "shards"))
    assert same_weights(whole, intern.convert(str(tmp_path / "shards"), str(tmp_path / "shards-out")))

    def checkpoint(tensors: dict) -> dict:
        return {"epoch": 3, "name": "run", "state_dict": {f"module.{name}": t for name, t in tensors.items()}}

    training = clip.converted(tmp_path, checkpoint, "training", pickled=True)
    clips = [clip.converted(tmp_path, name="safe"), clip.converted(tmp_path, name="pickle", pickled=True), training]
    assert same_weights(*clips) and not same_weights(clips[0], whole)
    other = OpenClip(CustomTextCLIP).model.visual.class_embedding  # control
    assert not torch.equal(weights(training)["embeddings.class_embedding"], other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_weights_have_the_given_or_the_stored_dtype_but_for_integers(dtype, tmp_path):
    def half(tensors: dict) -> dict:
        return {name: tensor.half() for name, tensor in tensors.items() if tensor.is_floating_point()}

    for original in (OpenClip(), Texify()):  # Swin's windows have a buffer of integers
        source = original.write(tmp_path / original.command, half)
        folder = original.convert(str(source), str(tmp_path / f"{original.command}-out"), dtype=dtype)
        dtypes = {tensor.dtype for tensor in weights(folder).values()}
        assert dtypes == {dtype or torch.float16} | ({torch.int64} if original.command == "texify" else set())
        assert AutoModel.from_pretrained(folder).dtype is (dtype or torch.float16)


SWIN_NORM, SWIN_ROWS = "encoder.embeddings.norm.bias", "encoder.embeddings.row_embeddings"
BROKEN = [
    (InternVit, "bonus", torch.zeros(1), "unknown tensor `bonus`"),
    (InternVit, f"{LAYER}ls2", None, "`encoder.layer.0.lambda_2`"),
    (InternVit, f"{LAYER}attn.qkv.weight", None, "`encoder.layer.0.attention.k_proj"),
    (InternVit, "embeddings.position_embedding", torch.zeros(1, 26, 32),
     r"`embeddings.position_embeddings` has shape \(1, 26, 32\)"),
    (InternVit, f"{LAYER}attn.qkv.weight", torch.zeros(64, 32), "`encoder.layer.0.attention.q_proj.weight` has shape"),
    (OpenClip, "visual.bonus", torch.zeros(1), "unknown tensor `visual.bonus`"),
    (OpenClip, "visual.ln_pre.weight", None, "`pre_layrnorm.weight`"),
    (OpenClip, POSITIONS, torch.zeros(26, 32), r"`embeddings.position_embedding.weight` has shape \(26, 32\)"),
    (Texify, "encoder.bonus", torch.zeros(1), "unknown tensor `encoder.bonus`"),
    (Texify, f"{SWIN_BLOCK}bonus", torch.zeros(1), "`encoder.layers.0.blocks.0.bonus` is not a tensor of the model"),
    (Texify, SWIN_NORM, None, "`embeddings.norm.bias`"),
    (Texify, SWIN_NORM, torch.zeros(17), r"`embeddings.norm.bias` has shape \(17,\)"),
    (Texify, SWIN_ROWS, torch.zeros(1, 16, 16), f"unknown tensor `{SWIN_ROWS}`"),
]  # fmt: skip


@pytest.mark.parametrize("kind, name, tensor, message", BROKEN)
def test_every_tensor_is_accounted_for(kind, name, tensor, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        kind().converted(tmp_path, lambda tensors: {name: tensor})
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


REFUSED = [
    (InternVit, {"model_type": "internvl_chat"}, "holds a `internvl_chat`"),
    (InternVit, {"norm_type": "batch_norm"}, "norm_type is 'batch_norm'"),
    (InternVit, {"layer_norm_eps": 1e-5}, "normalises queries and keys"),
    (OpenClip, {"no_ln_pre": True}, "no LayerNorm before the blocks"),
    (OpenClip, {"attentional_pool": True}, "attentional pooling"),
    (OpenClip, {"ls_init_value": 1e-4}, "LayerScale"),
    (OpenClip, {"patch_dropout": 0.5}, "patch dropout"),
    (OpenClip, {"qk_norm": True}, "norms of queries and keys"),
    (OpenClip, {"block_type": "custom"}, "custom attention blocks"),
    (OpenClip, {"pool_type": "avg"}, "pooling"),
    (OpenClip, {"timm_model_name": "vit_tiny"}, "timm"),
    (OpenClip, {"layers": [1, 1, 1, 1]}, "ResNet"),
    (OpenClip, {"image_size": [32, 64]}, "must be square"),
    (OpenClip, {"norm_kwargs": {"elementwise_affine": False}}, "only eps is configurable"),
    (OpenClip, {"act_kwargs": {"inplace": True}}, "no counterpart"),
    (OpenClip, {"quick_gelu": True, "act_kwargs": {"approximate": "tanh"}}, "no counterpart"),
    (OpenClip, {"rotary": True}, "does not know: ['rotary']"),
    (Texify, {"model_type": "vit"}, "has the encoder `vit`"),
    (Texify, {"use_absolute_embeddings": True}, "use_absolute_embeddings=true"),
    (Texify, {"use_2d_embeddings": True}, "use_2d_embeddings=true"),
]


@pytest.mark.parametrize("kind, settings, message", REFUSED)
def test_settings_without_a_counterpart_are_refused_by_name_in_one_line(kind, settings, message, tmp_path, refused):
    source = kind().write(tmp_path / "source", **settings)
    assert message in refused("convert", kind.command, "--source", source, "--output", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_existing_folder_is_not_replaced_and_missing_files_are_named(kind, tmp_path):
    source = kind().write(tmp_path / "source")
    before = sorted(source.iterdir())
    with pytest.raises(ValueError, match="exists and is not replaced"):
        kind.convert(str(source), str(source))
    assert sorted(source.iterdir()) == before
    missing = {"preprocessor_config.json": "no .*image_mean", "config.json": "config.json is missing"}
    for name, message in missing.items() if kind is not OpenClip else ():
        (source / name).unlink()
        with pytest.raises(ValueError, match=message):
            kind.convert(str(source), str(tmp_path / "out"))


def test_internvit_6b_fits_at_its_real_size_by_the_authors_defaults(tmp_path):
    """Names and shapes, without memory for them; of V1-2's settings only those that differ from the defaults."""
    given = {"model_type": "intern_vit_6b", "num_hidden_layers": 45, "image_size": 448}
    (tmp_path / "config.json").write_text(json.dumps(given))
    config = convert_intern_vit.vision_config(tmp_path)
    with torch.device("meta"):
        encoder = AutoModel.from_config(config)
    full = InternVit.CONFIG | given | {"hidden_size": 3200, "intermediate_size": 12800, "patch_size": 14}
    entries = WrittenTensors({name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()})
    for name, shape in InternVit.shapes(full).items():
        entries.add(dict(convert_intern_vit.KEYS.place(name, torch.empty(shape, device="meta"), "")), "")
    entries.check_complete()
    assert (config.norm_type, config.use_qk_norm, config.num_attention_heads) == ("rms_norm", True, 25)
    assert 5.5e9 < sum(parameter.numel() for parameter in encoder.parameters()) < 5.6e9


def test_an_encoder_of_oblong_images_needs_a_side_of_its_own(tmp_path):
    """Donut's are 2560 x 1920; a Swin without position embeddings takes any size."""
    original = Texify(image_size=[80, 60])
    folder = original.converted(tmp_path)
    assert original.difference(folder) <= 1e-5
    with pytest.raises(ValueError, match="image_size must be square"):
        assemble_vision_config([str(folder)])
    assert assemble_vision_config([str(folder)], image_sizes=[60]).encoder_outputs[0].num_patches == 64
