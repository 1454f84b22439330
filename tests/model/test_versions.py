"""What every version of transformers must give alike, in short; `make test` runs it on the oldest one as well."""

import json
import re
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import tiny
import torch
from PIL import Image
from transformers import AutoProcessor, Trainer, TrainingArguments

from omnifusion_hf import AutoModelForVision2Seq
from omnifusion_hf.inference import EXAMPLES, TINY, answer_examples, generate_text
from omnifusion_hf.model import configuration_omnifusion
from omnifusion_hf.model.configuration_omnifusion import TRANSFORMERS_VERSIONS


ROOT = TINY.parents[1]
# What the bundled model answers to its 13 questions, two of them wrongly.
ANSWERS = [
    "black", "cyan", "star", "4", "0", "right", "right", "2", "6", "WA", "568",
    r"c_{8}+\frac{3}{\theta}+\frac{0}{y}", r"n^{y}-\sqrt{\gamma}-\lambda^{\pi}",
]  # fmt: skip
BEAMS = ["a black", "a black square and a yellow triangle", "586", "58G", "1", "2"]
LOSSES = [9.81106, 5.75337]  # SGD: Adam's first step is the sign of gradients that are zero but for rounding


def image(name: str) -> Image.Image:
    return Image.open(EXAMPLES.parent / name).convert("RGB")


def test_the_bundled_questions_and_beams_over_several_views_give_the_recorded_answers(demo):
    assert [example["answer"] for example in answer_examples(*demo)] == ANSWERS
    model, processor = demo
    chats = [[tiny.user(image(name), "What is written?")] for name in ("digit-1.png", "text-3-characters-1.png")]
    chats.append([tiny.user(image("digit-2.png"), image("colour-1.png"), "Which digit is shown?")])
    inputs = tiny.prompt(processor, *chats, processor_kwargs={"view_strategy": "grid"})  # beams take no other's views
    assert generate_text(model, inputs, processor, 12, num_beams=3, num_return_sequences=2) == BEAMS


def test_two_steps_of_the_stock_trainer_have_the_recorded_losses_and_reload(tmp_path):
    torch.manual_seed(0)
    model = AutoModelForVision2Seq.from_pretrained(TINY, dtype="float32")
    processor = AutoProcessor.from_pretrained(TINY)
    examples = json.loads(EXAMPLES.read_text(encoding="utf-8"))[:4]

    def collate(samples):
        chats = [[tiny.user(image(one["image"]), one["question"]), tiny.assistant("red")] for one in samples]
        batch = tiny.prompt(processor, *chats, add_generation_prompt=False, return_assistant_tokens_mask=True)
        answers = batch.pop("assistant_masks").bool()
        return {**batch, "labels": batch["input_ids"].masked_fill(~answers, -100)}

    options = {"remove_unused_columns": False, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    options |= {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-4, "optim": "sgd"}
    settings = TrainingArguments(str(tmp_path), logging_steps=1, **options)
    trainer = Trainer(model, settings, train_dataset=examples, data_collator=collate, processing_class=processor)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx(LOSSES, rel=1e-5)
    trainer.save_model(str(tmp_path / "saved"))
    again = AutoModelForVision2Seq.from_pretrained(tmp_path / "saved", dtype="float32").eval()
    batch = collate(examples)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model.eval()(**batch).logits)


@pytest.mark.parametrize("version", ["4.57.6", "5.12.1", "6.0.0"])
def test_a_version_outside_the_window_is_refused_in_one_line(version, monkeypatch):
    """By the file that the package and remote code import first."""
    file = spec_from_file_location("omnifusion_hf.model.again", configuration_omnifusion.__file__)
    file.loader.exec_module(module_from_spec(file))  # control: this version is taken
    monkeypatch.setattr(configuration_omnifusion.transformers, "__version__", version)
    oldest, too_new = TRANSFORMERS_VERSIONS
    with pytest.raises(ImportError) as error:
        file.loader.exec_module(module_from_spec(file))
    assert str(error.value) == (
        f"OmniFusion needs transformers {oldest} or newer, before {too_new}; installed is {version}: "
        f"pip install 'transformers>={oldest},<{too_new}'"
    )


@pytest.mark.parametrize("entrance", ["configuration", "image_processing", "processing"])
def test_every_entrance_of_a_folder_meets_the_check(entrance):
    """`AutoImageProcessor` does not read the model's configuration, so its file imports the check first. transformers
    4 copies only those files of a folder that the entrance itself imports, so the check is before all others."""
    code = (ROOT / f"omnifusion_hf/model/{entrance}_omnifusion.py").read_text(encoding="utf-8")
    first = re.search(r"^from \.(\w+)", code, re.M)
    if entrance == "configuration":
        assert code.index("raise ImportError(") < first.start()
    else:
        assert first[1] == "configuration_omnifusion" and first.start() < code.index("\nfrom transformers")


def test_setup_asks_for_the_same_versions():
    oldest, too_new = TRANSFORMERS_VERSIONS
    setup, nox = ((ROOT / name).read_text(encoding="utf-8") for name in ("setup.py", "noxfile.py"))
    assert f'"transformers>={oldest},<{too_new}"' in setup
    assert re.search(rf"MINORS = .*range\({oldest.split('.')[1]}, \d+\)", nox)
