"""Assembling: any LLM answers text as before, trains, saves, generates with images; what would change is refused."""

import json
import shutil

import conversations
import llms
import pytest
import tiny
import torch
import training_runs
from llms import assembled
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from omnifusion_hf import OmniFusionForConditionalGeneration, OmniFusionProcessor
from omnifusion_hf.model.modeling_omnifusion import scale_logits
from omnifusion_hf.training.stages import apply_stage


IDS = torch.arange(5, 25).view(2, 10)


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", llms.FAMILIES)
def test_text_gets_the_logits_of_the_llm(family, tied, parts, tmp_path):
    text = llms.save(tmp_path / "llm", family, tied)
    model, llm = assembled(parts / "clip", text), AutoModelForCausalLM.from_pretrained(text).eval()
    assert model.config.text_config is model.model.language_model.config
    expected = llm(IDS).logits
    rows = expected.shape[-1]
    torch.testing.assert_close(model(IDS).logits[..., :rows], expected, atol=1e-5, rtol=0)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    if family in ("gemma2", "cohere", "cohere2", "granite"):  # control: the head alone is not enough
        raw = model.lm_head(model.model(IDS).last_hidden_state)[..., :rows]
        assert (raw - expected).abs().max() > 0.1
        assert torch.equal(scale_logits(raw, llm.config), expected)


@pytest.mark.parametrize("family", sorted(llms.FAMILIES.keys() - {"gpt2", "opt", "bloom", "cohere2"}))
def test_every_llm_trains_saves_and_generates(family, parts, tmp_path):
    """After a step of stage 1 the adapter and the new rows differ."""
    text = llms.save(tmp_path / "llm", family, tied=bool([*llms.FAMILIES].index(family) % 2))
    model = assembled(parts / "clip", text)
    processor = OmniFusionProcessor.from_vision_text_pretrained([parts / "clip"], text)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    apply_stage(model, "pretrain")
    sample = {"name": "s", "messages": [tiny.user(tiny.image(), "What?"), tiny.assistant("A sky.")]}
    training_runs.step(model, conversations.collate(processor, [sample, sample]))
    model.eval().save_pretrained(tmp_path / "saved")
    loaded, info = OmniFusionForConditionalGeneration.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    for name, value in loaded.state_dict().items():
        if "language_model" in name and len(value) == loaded.config.text_config.vocab_size:
            changed = (value != before[name]).any(-1).nonzero().flatten().tolist()
            assert changed and set(changed) <= set(loaded.config.special_token_ids), name
        elif "language_model" in name or name.endswith("multi_modal_projector.linear_1.weight"):
            assert torch.equal(value, before[name]) == ("language_model" in name), name
    inputs = tiny.prompt(processor, [tiny.user(tiny.image(), "What?")], [tiny.user("And words alone, more of them?")])
    with torch.no_grad():  # in training the rows are a parameter of their own: Gemma's scale must reach it too
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)
    generated = loaded.generate(**inputs, max_new_tokens=2, min_new_tokens=2, num_beams=2, do_sample=False)
    assert generated.shape[1] == inputs.input_ids.shape[1] + 2


def test_a_part_with_missing_weights_is_refused_and_one_without_unused_weights_is_not(parts, tmp_path):
    shutil.copytree(parts / "clip", tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")

    def save_without(*parts: str):
        kept = {name: value for name, value in weights.items() if not any(part in name for part in parts)}
        save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})

    save_without("layers.2.", "post_layernorm")
    assembled(tmp_path, parts / "llm")  # layer -2 of 3 needs none of them
    save_without("layers.1.mlp.fc1.weight")
    with pytest.raises(ValueError, match="lacks 1 weights of a `clip_vision_model` .*layers.1.mlp"):
        assembled(tmp_path, parts / "llm")


@torch.no_grad()
def test_rows_that_are_no_token_never_win_and_tokens_added_later_can(parts):
    model = assembled(parts / "clip", parts / "llm")
    logits = model.lm_head(torch.randn(1000, 32))
    assert logits.argmax(-1).max() < llms.VOCAB and len(logits[0]) == 448
    model.lm_head.weight[405:] = torch.randn(43, 32)  # control: rows filled in another way do win
    assert model.lm_head(torch.randn(1000, 32)).argmax(-1).max() >= 405
    processor = OmniFusionProcessor.from_vision_text_pretrained([parts / "clip"], parts / "llm")
    assert processor.tokenizer.add_tokens(["<point>"]) == 1
    added = processor.tokenizer.convert_tokens_to_ids("<point>")
    model.lm_head.weight[added] = 100 * model.model(torch.tensor([[5, 6]])).last_hidden_state[0, -1]
    assert model.generate(input_ids=torch.tensor([[5, 6]]), max_new_tokens=1, do_sample=False)[0, -1] == added


@pytest.mark.parametrize(
    "ends, pad, expected", [(None, None, ([2], 2)), (7, 3, ([7, 2], 3)), ([7, 2], None, ([7, 2], 2))]
)
def test_generation_stops_at_the_llms_ends_and_at_the_eos_of_answers(ends, pad, expected, parts, tmp_path):
    text = llms.save(tmp_path, "mistral")
    path = text / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": ends, "pad_token_id": pad, "temperature": 0.6, "do_sample": True}))
    settings = assembled(parts / "clip", text).generation_config
    assert (settings.eos_token_id, settings.pad_token_id) == expected
    assert settings.temperature == 0.6  # what else the LLM's makers chose stays


@torch.no_grad()
@pytest.mark.parametrize("family", ["gemma", "granite"])
def test_visual_tokens_enter_behind_the_scale_of_the_embedding_table(family, parts, tmp_path):
    """Gemma's table scales what it gives, and visual tokens are not scaled; Granite scales all that enters."""
    model = assembled(parts / "clip", llms.save(tmp_path, family))
    seen = []
    model.model.language_model.layers[0].register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    ids = torch.full((1, 16), model.config.image_token_id)
    outputs = model(input_ids=ids, pixel_values=torch.rand(1, 3, 32, 32))
    scale = {"gemma": 1.0, "granite": 6.0}[family]
    torch.testing.assert_close(seen[0][0], scale * torch.cat(outputs.image_outputs.pooler_output))
