"""What only a GPU shows: `pytest -m gpu`, which benchmarks/gpu.py runs too. Skipped where there is none."""

import pytest
import tiny
import torch
import training_runs
from transformers import AutoModelForImageTextToText

from omnifusion_hf.inference import generate_text, load, prompts


DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT's
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With heads of 16, the least that flex attention takes."""
    config, folder = (
        tiny.config(text=tiny.text_config(initializer_range=0.2, head_dim=16)),
        tmp_path_factory.mktemp("model"),
    )
    config.vision_config.encoder_configs[0].num_attention_heads = 2
    for part in (tiny.model(config), tiny.processor(config)):
        part.save_pretrained(folder)
    return folder


def asked(processor, seed: int = 0):
    return prompts(processor, [[tiny.user(tiny.image(seed, (90, 60)), "What?")]])


@pytest.mark.parametrize("device", [DEVICE, "auto"])
def test_a_model_on_the_gpu_takes_inputs_of_the_cpu_and_answers_as_there(folder, device):
    model, processor = load(str(folder), device=device, dtype="float32")
    assert {parameter.device.type for parameter in model.parameters()} == {DEVICE}
    reference, _ = load(str(folder), device="cpu", dtype="float32")
    answers = [
        [generate_text(each, asked(processor, seed), processor, 8) for seed in (0, 1)] for each in (model, reference)
    ]
    assert answers[0] == answers[1] and answers[0][0] != answers[0][1]  # control: the image matters


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2", "flex_attention"])
def test_every_attention_gives_the_logits_of_eager_in_bfloat16(folder, attention):
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn", reason="flash-attn is not installed")
    eager, processor = load(str(folder), device=DEVICE, dtype="bfloat16", attn_implementation="eager")
    other, _ = load(str(folder), device=DEVICE, dtype="bfloat16", attn_implementation=attention)
    inputs, changed = (asked(processor, seed).to(DEVICE) for seed in (0, 1))
    expected = eager(**inputs).logits.float()
    scale = expected.abs().max()
    assert (other(**inputs).logits.float() - expected).abs().max() < 0.05 * scale
    assert (eager(**changed).logits.float() - expected).abs().max() > 0.05 * scale  # control


@torch.no_grad()
def test_a_compiled_model_is_one_graph_with_the_same_logits(folder):
    model, processor = load(str(folder), device=DEVICE, dtype="float32")
    inputs = asked(processor).to(DEVICE)
    compiled = torch.compile(model, fullgraph=True)(**inputs).logits
    torch.testing.assert_close(compiled, model(**inputs).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("changes", [{}, {"packing": True, "max_length": 256}, {"stage": "lora", "lora_rank": 4}])
def test_training_in_bfloat16_lowers_the_loss_and_keeps_the_dtype_of_the_folder(folder, tmp_path, changes):
    losses = []
    changes = {"stage": "finetune"} | changes
    for steps in (1, 20):
        fields = {"max_steps": steps, "bf16": True, "use_cpu": False, "save_steps": 1000} | changes
        losses.append(training_runs.run(tmp_path / str(steps), folder, **fields)["final_loss"])
    assert losses[1] < losses[0]
    trained = AutoModelForImageTextToText.from_pretrained(tmp_path / "20" / "out")
    assert {parameter.dtype for parameter in trained.parameters()} == {torch.float32}
