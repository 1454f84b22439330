"""LoRA: which layers get it, checkpoints that load alone with equal logits, merging to a plain folder."""

import copy
import json
import shutil
from pathlib import Path

import conversations
import llms
import pytest
import tiny
import torch
import training_runs
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import user
from torch import nn
from training_runs import logits, rerun
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.pytorch_utils import Conv1D

from omnifusion_hf import OmniFusionForConditionalGeneration
from omnifusion_hf.cli import main
from omnifusion_hf.training.lora import linear_layers, merge
from omnifusion_hf.training.stages import apply_stage, part_of


def run(folder: Path, base: Path, **changes) -> Path:
    """Trains with LoRA in `folder`; returns the folder of the result."""
    training_runs.run(folder, base, stage="lora", lora_rank=4, lora_alpha=8, **changes)
    return folder / "out"


@pytest.fixture(scope="module", params=["untied", "tied", "tower too"])
def trained(request, tmp_path_factory) -> tuple[Path, Path]:
    """Folders of a base model and of a LoRA run on it."""
    folder = tmp_path_factory.mktemp(request.param.replace(" ", "_"))
    text = tiny.text_config(tie_word_embeddings=request.param == "tied")
    base = conversations.write_model(folder / "base", text=text)
    return base, run(folder, base, vision_tuning="lora" if request.param == "tower too" else "frozen")


load = AutoModelForImageTextToText.from_pretrained
TARGETS = [("lora", "frozen", "language_model", family) for family in llms.FAMILIES]
TARGETS += [("pretrain", "lora", "vision_tower", "mistral")]


@pytest.mark.parametrize(("stage", "vision", "part", "family"), TARGETS)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_lora_is_on_the_linear_layers_of_its_part_alone(tmp_path, parts, family, stage, vision, part):
    model = OmniFusionForConditionalGeneration.from_vision_text_pretrained(
        [parts / "siglip", parts / "swin"], llms.save(tmp_path, family), projector_type="concatenation"
    )
    modules = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    linear = {f"base_model.model.{name}" for name in modules if f".{part}." in name}
    model = apply_stage(model, stage, vision)
    assert linear == {name.rpartition(".lora_A")[0] for name, _ in model.named_modules() if name.endswith(".lora_A")}


def test_checkpoint_with_adapter_and_special_rows_loads_alone_and_gives_the_logits_of_its_step(trained, tmp_path):
    base, out = trained
    short = tmp_path / "short"
    rerun(out.parent / "recipe.yaml", "max_steps=2", f"output_dir={short}")
    of_two_steps = logits(load(short), short)
    with_peft = PeftModel.from_pretrained(load(base), out / "checkpoint-2")
    for model, folder in ((load(out / "checkpoint-2"), out / "checkpoint-2"), (with_peft, base)):
        assert torch.equal(logits(model, folder), of_two_steps)
    for control in (base, out / "checkpoint-4"):
        assert not torch.allclose(logits(load(control), base), of_two_steps)
    saved = load_file(out / "checkpoint-2/adapter_model.safetensors")
    projector = {name for name in load_file(base / "model.safetensors") if part_of(name) == "multi_modal_projector"}
    assert projector and {f"base_model.model.{name}" for name in projector} < set(saved)
    assert [tensor.shape for name, tensor in saved.items() if "trainable_tokens_delta" in name] == [(5, 32)]
    summary = json.loads((out / "training_summary.json").read_text())
    assert (summary["lora_rank"], summary["lora_alpha"]) == (4, 8)


def test_folder_names_its_base_from_anywhere_and_generates(trained, monkeypatch, tmp_path):
    monkeypatch.chdir(trained[0].parent)
    out = run(tmp_path, Path("base"), max_steps=1)
    monkeypatch.chdir("/")
    inputs = tiny.prompt(AutoProcessor.from_pretrained(out), [user(tiny.image(0), "What colour is the sky?")])
    answer = load(out).generate(**inputs, max_new_tokens=2, do_sample=False)
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 2


def test_merged_folder_is_plain_and_has_equal_logits(trained, tmp_path):
    base, out = trained
    merged = tmp_path / "merged"
    assert main(["merge", str(out), "-o", str(merged)]) == 0
    assert set(load_file(merged / "model.safetensors")) == set(load_file(base / "model.safetensors"))
    assert not list(merged.glob("adapter*"))
    assert (merged / "training_summary.json").read_bytes() == (out / "training_summary.json").read_bytes()
    torch.testing.assert_close(logits(load(merged), merged), logits(load(out), out), rtol=0, atol=4e-7)
    assert not torch.allclose(logits(load(base), base), logits(load(out), out), atol=1e-3)


def test_a_lora_run_is_no_start_for_another_and_merging_names_a_moved_base_and_what_is_no_lora_run_or_exists(tmp_path):
    base = conversations.write_model(tmp_path / "base")
    out = run(tmp_path, base, max_steps=1)
    with pytest.raises(ValueError, match="out holds LoRA weights only; start from its base model with lora_weights: "):
        rerun(tmp_path / "recipe.yaml", f"model_name_or_path={out}", f"output_dir={tmp_path / 'next'}")
    base.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="base`; give --base"):
        merge(out, tmp_path / "merged")
    merge(out, tmp_path / "merged", tmp_path / "moved")
    assert load(tmp_path / "merged")
    with pytest.raises(ValueError, match="is not a folder of a LoRA run"):
        merge(tmp_path, tmp_path / "other")
    with pytest.raises(ValueError, match="exists and is not replaced"):
        merge(out, tmp_path / "merged")


def test_a_run_begins_with_the_weights_of_an_earlier_one_and_refuses_those_of_other_settings(trained, tmp_path):
    base, out = trained
    recipe, still = out.parent / "recipe.yaml", ("learning_rate=0", "projector_learning_rate=0", "max_steps=1")
    for name, begun in (("next", [f"lora_weights={out}"]), ("anew", [])):
        rerun(recipe, *still, *begun, f"output_dir={tmp_path / name}")
    assert torch.equal(logits(load(tmp_path / "next"), out), logits(load(out), out))
    assert not torch.allclose(logits(load(tmp_path / "anew"), out), logits(load(out), out), atol=1e-3)  # control
    refused = {
        "lora_rank=8": "has r 4, this run 8",
        "lora_alpha=4": "has lora_alpha 8, this run 4",
        "lora_target_modules=[q_proj]": "is of another model or other layers",
        "stage=finetune": "stage finetune trains",
        f"lora_weights={base}": "is not a folder of a LoRA run",
    }
    for setting, message in refused.items():
        with pytest.raises(ValueError, match=message):
            rerun(recipe, f"lora_weights={out}", setting, f"output_dir={tmp_path / 'refused'}")


def test_merging_with_another_base_or_a_part_of_the_weights_is_refused(trained, tmp_path):
    _, out = trained
    model = load(trained[0])
    fewer, other = copy.deepcopy(model.config), copy.deepcopy(model.config)
    fewer.text_config.num_hidden_layers -= 1
    other.projector_type = "transformer"
    for name, config in (("fewer", fewer), ("other", other)):
        type(model)(config).save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=f"not those of .*{name}, as .*give the right --base"):
            merge(str(out), str(tmp_path / "merged"), str(tmp_path / name))
    part = Path(shutil.copytree(out, tmp_path / "part"))
    weights = load_file(part / "adapter_model.safetensors")
    save_file({name: weights[name] for name in list(weights)[1:]}, part / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"as .*{list(weights)[0]} shows"):
        merge(str(part), str(tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()


def test_bfloat16_base_trains_in_float32_and_merges_to_bfloat16(tmp_path):
    base = conversations.write_model(tmp_path / "base", dtype=torch.bfloat16)
    out = run(tmp_path, base, bf16=True, vision_tuning="full")
    assert {tensor.dtype for tensor in load_file(out / "adapter_model.safetensors").values()} == {torch.float32}
    merge(out, tmp_path / "merged")
    merged = load_file(tmp_path / "merged/model.safetensors")
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    reference = logits(load(out).float(), out)
    torch.testing.assert_close(logits(load(tmp_path / "merged").float(), out), reference, rtol=0, atol=0.02)
    assert (logits(load(base).float(), out) - reference).abs().max() > 0.1


RSLORA = {"lora_variant": "rslora", "lora_target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize("fields", [{"lora_variant": "dora"}, RSLORA, {"load_in_4bit": True}])
def test_variants_of_lora_train_and_merge_to_what_they_answer(fields, tmp_path, base):
    out, variant = run(tmp_path, base, **fields), fields.get("lora_variant")
    saved = load_file(out / "adapter_model.safetensors")
    assert any("magnitude" in name for name in saved) == (variant == "dora")
    layers = {name.split(".")[-3] for name in saved if ".language_model." in name and "lora_A" in name}
    assert layers == set(fields.get("lora_target_modules", layers)) and len(layers) > 1
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["use_dora"], config["use_rslora"]) == (variant == "dora", variant == "rslora")
    merge(str(out), str(tmp_path / "merged"))
    merged, plain = load(tmp_path / "merged"), load(out)
    torch.testing.assert_close(logits(merged, base), logits(plain, base), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(merged, base), logits(load(base), base))  # control
    if fields.get("load_in_4bit"):  # trained through the rounded LLM
        unrounded = load_file(run(tmp_path / "unrounded", base) / "adapter_model.safetensors")
        assert saved.keys() == unrounded.keys() and any((saved[name] != unrounded[name]).any() for name in saved)


def test_each_part_gets_lora_on_those_of_the_named_layers_that_it_has(model):
    some = linear_layers(model, ["language_model", "vision_tower"], ["q_proj", "up_proj", "fc1"])
    parts = [pattern.rpartition("(")[-1] for pattern in some.split("|model")]
    assert parts == ["q_proj|up_proj)", "fc1|q_proj)"]


MISTAKES = {
    r"no linear layer is named \['q_prj'\], but \['down_proj'": {"lora_target_modules": ["q_prj"]},
    r"vision_tower has none of \['up_proj'\], but \['fc1'": {
        "lora_target_modules": ["up_proj"],
        "vision_tuning": "lora",
    },
    "load_in_4bit: stage finetune trains the LLM whole": {"stage": "finetune", "load_in_4bit": True},
    "load_in_4bit: stage pretrain trains without LoRA": {"stage": "pretrain", "load_in_4bit": True},
}


@pytest.mark.parametrize("said", MISTAKES)
def test_settings_of_lora_that_cannot_work_are_refused(said, tmp_path, base):
    with pytest.raises(ValueError, match=said):
        training_runs.run(tmp_path, base, **{"stage": "lora"} | MISTAKES[said])


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_run_is_merged_and_quantised_in_one_command(bits, trained, tmp_path):
    base, out = trained
    assert main(["merge", str(out), "-o", str(tmp_path / bits), "--quantization", bits]) == 0
    assert main(["merge", str(out), "-o", str(tmp_path / "whole")]) == 0
    quantised, whole = load(tmp_path / bits), load(tmp_path / "whole")
    assert getattr(quantised, f"is_loaded_in_{bits}") and (tmp_path / bits / "training_summary.json").is_file()
    assert len(list((tmp_path / bits).glob("*.safetensors"))) == 1
    if bits == "8bit":  # 4 bits need widths of 64 on a CPU
        found, expected = logits(quantised, base), logits(whole, base)
        assert 0 < (found - expected).abs().max() < 0.1 * expected.abs().max()
