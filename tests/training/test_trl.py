"""TRL's SFTTrainer, called by the scripts of docs/trl.md: what trains, on which labels, and that the folder loads."""

import math
import re

import conversations
import llms
import pages
import pytest
import torch
from conversations import NONE, ONE, TWO
from torch import nn
from training_runs import changed, logits
from transformers import AutoModelForImageTextToText

from omnifusion_hf import OmniFusionForConditionalGeneration, OmniFusionProcessor


pytest.importorskip("trl", reason="pip install trl; training with TRL was not tested")
from trl import SFTConfig, SFTTrainer  # noqa: E402
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling  # noqa: E402
from trl.trainer.utils import add_fused_lm_head  # noqa: E402


pytestmark = pages.OTHERS_DEPRECATIONS
PAGE = pages.ROOT / "docs/trl.md"
TINY = "omnifusion_hf/tiny"


def load(folder=pages.ROOT / TINY) -> nn.Module:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")


def losses(trainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def as_row(sample: dict) -> dict:
    """Our sample as TRL's: images in a column of their own, their places in the messages."""
    messages = [{**turn, "content": [dict(part) for part in turn["content"]]} for turn in sample["messages"]]
    parts = [part for turn in messages for part in turn["content"] if part["type"] == "image"]
    return {"images": [part.pop("image") for part in parts], "messages": messages}


TRAINED = {"pretrain": "_projector|embed_tokens", "finetune": "_projector|language_model|lm_head"}


@pytest.mark.parametrize("stage", TRAINED)
def test_the_script_trains_exactly_what_the_stage_says(stage, ran_page, tmp_path):
    if stage == "pretrain":
        run = ran_page(PAGE)
    else:
        page = pages.changed(PAGE, tmp_path, ('apply_stage(model, "pretrain")', f'apply_stage(model, "{stage}")'))
        run = pages.run_page(page, tmp_path)
    seen = losses(run.names[0]["trainer"])
    assert len(seen) == 3 and all(map(math.isfinite, seen)) and seen[-1] < seen[0]
    tuned, base = load(run.folder / "tuned"), load()
    before, after = base.state_dict(), tuned.state_dict()
    assert changed(before, after) == {name for name in before if re.search(TRAINED[stage], name)}
    table, before = (model.get_input_embeddings().weight for model in (tuned, base))
    rows = set((table != before).any(-1).nonzero().flatten().tolist())
    assert (rows <= set(base.config.special_token_ids)) == (stage == "pretrain")


def test_the_saved_folder_has_the_logits_of_the_trained_model(ran_page):
    run = ran_page(PAGE)
    trained = logits(run.names[0]["trainer"].model, run.folder / "tuned")
    assert torch.equal(logits(load(run.folder / "tuned"), run.folder / "tuned"), trained)
    assert not torch.equal(logits(load(), run.folder / "tuned"), trained)  # control


def assert_collated_as_ours(rows: list[dict], processor, samples: list[dict], **options):
    batch = DataCollatorForVisionLanguageModeling(processor, **options)(rows)
    for name, ours in conversations.collate(processor, samples).items():
        assert torch.equal(batch[name], ours), name


@pytest.mark.parametrize("views", ["processor", "grid_processor"])
@pytest.mark.parametrize("samples", [[ONE, TWO, NONE], [NONE]])
def test_batches_of_assistant_only_loss_and_of_completions_are_those_of_our_own_training(views, samples, request):
    processor = request.getfixturevalue(views)
    assert_collated_as_ours(list(map(as_row, samples)), processor, samples, assistant_only_loss=True)
    with pytest.raises(AssertionError, match="labels"):  # control: the questions too
        assert_collated_as_ours(list(map(as_row, samples)), processor, samples)
    given = (as_row(sample).values() for sample in (TWO, NONE))
    rows = [{"images": images, "prompt": turns[:1], "completion": turns[1:]} for images, turns in given]
    assert_collated_as_ours(rows, processor, [TWO, NONE], completion_only_loss=True)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["mistral", "cohere", "granite", "gemma2"])
def test_the_loss_is_that_of_the_model_itself(family, tied, parts, tmp_path):
    """TRL computes it from `model.base_model` and the head's weight, past the model's own forward."""
    folders = [parts / "clip"], llms.save(tmp_path, family, tied)
    model = OmniFusionForConditionalGeneration.from_vision_text_pretrained(*folders).eval()
    batch = conversations.collate(OmniFusionProcessor.from_vision_text_pretrained(*folders), [ONE, TWO, NONE])
    with torch.no_grad():
        ours = model(**batch).loss
        add_fused_lm_head(model)
        theirs = -model(**batch, fused_lm_head=True).log_probs.sum() / (batch["labels"][:, 1:] != -100).sum()
    torch.testing.assert_close(theirs, ours)
    assert ours > 1  # control: there is a loss to compare


def test_lora_trains_its_factors_the_adapter_and_the_special_rows_and_loads_to_the_bit(ran_page):
    run = ran_page(PAGE)
    trainer, tuned = run.names[1]["lora_trainer"], run.names[1]["tuned"]
    assert len(losses(trainer)) == 3 and all(map(math.isfinite, losses(trainer)))
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    wanted = ("lora_A", "lora_B", "multi_modal_projector.modules_to_save", "embed_tokens.token_adapter")
    assert trained and all(any(piece in name for piece in wanted) for name in trained)
    assert not any("vision_tower" in name or "lm_head" in name for name in trained)
    assert all(any(piece in name for name in trained) for piece in wanted)
    after = logits(trainer.model, run.folder / "tuned-lora")
    assert torch.equal(logits(tuned, run.folder / "tuned-lora"), after)
    assert not torch.equal(logits(load(), run.folder / "tuned-lora"), after)  # control


def test_lora_trains_on_an_llm_of_four_bits(tmp_path):
    pytest.importorskip("bitsandbytes")
    four = 'dtype="bfloat16", quantization_config=BitsAndBytesConfig(load_in_4bit=True))\nlora'
    imported = "import LoraConfig\n"
    more = (imported, f"{imported}from transformers import BitsAndBytesConfig\n")
    page = pages.changed(PAGE, tmp_path, ('dtype="float32")\nlora', four), more)
    trainer = pages.run_page(page, tmp_path).names[1]["lora_trainer"]
    assert len(losses(trainer)) == 3 and all(map(math.isfinite, losses(trainer)))
    factors = [parameter for name, parameter in trainer.model.named_parameters() if "lora_B" in name]
    assert factors and all(factor.any() for factor in factors)  # they start as zeros


@pytest.mark.parametrize("bundled", [False, True], ids=["a saved folder", "the bundled model"])
def test_a_folder_can_be_given_by_its_name(bundled, model_folder, ran_page, tmp_path):
    rows = ran_page(PAGE).names[0]["dialogues"]
    settings = SFTConfig(tmp_path, bf16=False, max_length=None, report_to="none")
    trainer = SFTTrainer(str(pages.ROOT / TINY if bundled else model_folder), args=settings, train_dataset=rows)
    assert type(trainer.model) is OmniFusionForConditionalGeneration
    assert type(trainer.processing_class) is OmniFusionProcessor


@pytest.mark.filterwarnings("ignore:The .*keep_end.* truncation mode is deprecated:FutureWarning")  # TRL's
@pytest.mark.parametrize("setting", ["packing=True", "padding_free=True", 'truncation_mode="keep_end"'])
def test_what_the_page_calls_refused_is_refused(setting, tmp_path):
    page = pages.changed(PAGE, tmp_path, ("    assistant_only_loss=True,\n", f"    {setting},\n"))
    page.write_text(page.read_text().replace("max_length=None", "max_length=500"))
    with pytest.raises(ValueError, match=setting.partition("=")[0].replace("_", ".").replace("packing", "[Pp]acking")):
        pages.run_page(page, tmp_path)


@pytest.mark.parametrize("strategy", ["whole", "grid"])
@pytest.mark.parametrize("bundled", [False, True], ids=["a saved folder", "the bundled model"])
def test_dpo_and_grpo_run_three_steps(bundled, strategy, model_folder, tmp_path):
    *_, dpo, grpo = [block.code for block in pages.blocks(PAGE.read_text()) if block.language == "python"]
    loads = "processor = AutoProcessor.from_pretrained(folder)\n"
    chosen = f"{loads}processor.image_processor.view_strategy = {strategy!r}\n"
    page = tmp_path / "page.md"
    page.write_text("".join(f"```python\n{code.replace(loads, chosen)}```\n\n" for code in (dpo, grpo)))
    if not bundled:
        page.write_text(page.read_text().replace('folder = "omnifusion_hf/tiny"', f'folder = "{model_folder}"'))
    (tmp_path / "scratch").mkdir()
    names = pages.run_page(page, tmp_path / "scratch").names[-1]
    for trainer in (names["dpo_trainer"], names["grpo_trainer"]):
        assert trainer.state.global_step == len(losses(trainer)) == 3 and all(map(math.isfinite, losses(trainer)))
    assert names["processor"].image_processor.view_strategy == strategy
