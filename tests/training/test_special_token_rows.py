"""Special tokens' rows that train alone: equal to rows of the table in the model, folded into it when saved."""

import copy

import pytest
import tiny
import torch
from training_runs import batch, changed, saved, step

from omnifusion_hf.training.stages import apply_stage, part_of


def make(tied: bool):
    return tiny.model(tiny.config(text=tiny.text_config(tie_word_embeddings=tied)))


@pytest.mark.parametrize("tied", [False, True])
def test_pretrain_step_changes_adapter_and_special_rows_only_whichever_of_both_models_saves(tied, tmp_path):
    given = make(tied)
    before = copy.deepcopy(given.state_dict())
    inputs = batch(given)
    model = apply_stage(given, "pretrain")
    step(model, inputs)
    after = saved(model, tmp_path)
    assert not changed(after, saved(given, tmp_path))
    table = "model.language_model.embed_tokens.weight"
    moved = changed(before, after)
    assert {part_of(name) for name in moved - {table, "lm_head.weight"}} == {"multi_modal_projector"}
    rows = (before[table] != after[table]).any(-1).nonzero().flatten().tolist()
    seen = set(inputs["input_ids"].unique().tolist()) & set(model.config.special_token_ids)
    assert set(rows) <= set(model.config.special_token_ids)
    assert set(rows) >= seen - {model.config.image_token_id} and len(seen) == 5
    assert torch.equal(after["lm_head.weight"], after[table] if tied else before["lm_head.weight"])


@pytest.mark.parametrize("tied", [False, True])
def test_split_rows_give_the_logits_and_gradients_of_the_table(tied):
    whole, split = make(tied), make(tied)
    inputs = batch(whole)
    apply_stage(split, "pretrain")
    rows = split.get_input_embeddings().special_token_rows
    ids = split.config.special_token_ids
    with torch.no_grad():
        rows.add_(torch.randn_like(rows))
        assert not torch.allclose(whole(**inputs).logits, split(**inputs).logits)
        whole.get_input_embeddings().weight[ids] = rows
    if not tied:
        whole.lm_head.requires_grad_(False)
    results = [model(**inputs) for model in (whole, split)]
    torch.testing.assert_close(results[0].logits, results[1].logits)
    for result in results:
        result.loss.backward()
    torch.testing.assert_close(whole.get_input_embeddings().weight.grad[ids], rows.grad)


@pytest.mark.parametrize("tied", [False, True])
def test_folder_of_a_split_model_is_a_plain_models_and_its_weights_load_into_both(tied, tmp_path):
    plain, split, again, third = make(tied), *(apply_stage(make(tied), "pretrain") for _ in range(3))
    inputs = batch(plain)
    step(split, inputs)
    logits = split.eval()(**inputs).logits
    weights, own = saved(split, tmp_path), split.state_dict()
    # what FSDP and DeepSpeed save and load
    assert set(own) == {name for name, _ in split.named_parameters(remove_duplicate=False)}
    for model, given in ((plain, weights), (again, weights), (third, own)):
        assert not torch.allclose(model.eval()(**inputs).logits, logits)
        model.load_state_dict(given)
        torch.testing.assert_close(model.eval()(**inputs).logits, logits)
