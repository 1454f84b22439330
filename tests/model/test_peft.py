"""PEFT with the stock Trainer, called by the script of docs/peft.md: what trains, and that what is saved loads."""

import math
import re

import conversations
import pages
import pytest
import tiny
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from omnifusion_hf.cli import main


peft = pytest.importorskip("peft", reason="pip install peft; training with PEFT was not tested")

pytestmark = pages.OTHERS_DEPRECATIONS
PAGE = pages.ROOT / "docs/peft.md"


@pytest.fixture(scope="module", params=["the bundled model", "tied head"])
def run(request, ran_page, tmp_path_factory) -> pages.Run:
    if request.param == "the bundled model":
        return ran_page(PAGE)
    tied, folder = tmp_path_factory.mktemp("tied"), tmp_path_factory.mktemp("page")
    conversations.write_model(tied, text=tiny.text_config(tie_word_embeddings=True, initializer_range=0.2))
    bundled = 'folder = "omnifusion_hf/tiny"\nimages = Path(folder,'
    replaced = f'folder = "{tied}"\nimages = Path("omnifusion_hf/tiny",'
    return pages.run_page(pages.changed(PAGE, folder, (bundled, replaced)), folder)


def logits(model: nn.Module, processor) -> torch.Tensor:
    inputs = tiny.prompt(processor, [tiny.user(tiny.image(), "What is this?")])
    with torch.no_grad():
        return model.eval()(**inputs).logits


def base_of(run: pages.Run) -> nn.Module:
    return AutoModelForImageTextToText.from_pretrained(run.folder / run.names[0]["folder"], dtype="float32")


def test_the_loss_falls(ran_page):
    history = ran_page(PAGE).names[0]["trainer"].state.log_history
    losses = [line["loss"] for line in history if "loss" in line]
    assert len(losses) == 3 and all(map(math.isfinite, losses)) and losses[-1] < losses[0]


def test_exactly_lora_the_adapter_and_the_special_rows_change(run):
    base, merged = base_of(run), run.names[1]["merged"].state_dict()
    changed = {name for name, tensor in base.state_dict().items() if not torch.equal(tensor, merged[name])}
    pattern = r"_proj\.weight|multi_modal_projector|embed_tokens" + "|lm_head" * base.config.tie_word_embeddings
    trained = {name for name in base.state_dict() if "vision_tower" not in name and re.search(pattern, name)}
    assert changed == trained
    table = merged["model.language_model.embed_tokens.weight"]
    rows = (table != base.get_input_embeddings().weight).any(-1).nonzero().flatten()
    assert set(rows.tolist()) <= set(base.config.special_token_ids)


def test_labels_of_the_page_are_those_of_our_own_training(run):
    names = run.names[0]
    samples = [conversations.item(*names["messages"](sample)) for sample in names["samples"][:3]]
    with pages.contextlib.chdir(run.folder):
        batch, ours = names["collate"](names["samples"][:3]), conversations.collate(names["processor"], samples)
    assert all(torch.equal(batch[name], ours[name]) for name in ours)


def test_what_is_saved_loads_to_the_bit_and_merges_to_rounding(run):
    names = run.names[1]
    trained = logits(names["peft_model"], names["processor"])
    assert torch.equal(logits(names["loaded"], names["processor"]), trained)
    for model in (names["merged"], names["plain"]):
        torch.testing.assert_close(logits(model, names["processor"]), trained, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(base_of(run), names["processor"]), trained, atol=1e-3)  # control


def test_omnifusion_merge_does_the_same(ran_page, tmp_path):
    run = ran_page(PAGE)
    with pages.contextlib.chdir(run.folder):
        assert main(["merge", "my-lora", "-o", str(tmp_path / "merged")]) == 0
    ours = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype="float32")
    plain, base = (model.state_dict() for model in (run.names[1]["plain"], base_of(run)))
    # Sum and summands have the base model's dtype, bfloat16.
    rounding = {"rtol": 2**-8, "atol": 2**-15}
    torch.testing.assert_close(dict(ours.state_dict()), dict(plain), **rounding)
    with_lora = [name for name in base if name.endswith("q_proj.weight") and ".language_model." in name]
    assert not any(torch.allclose(base[name], plain[name], **rounding) for name in with_lora) and with_lora  # control
