"""Training against its peers: packing, cached features of frozen encoders, and the memory of the loss.

    python benchmarks/training.py [--repeats 2] [--only packing]

packing: transformers' own LLaVA with Trainer and a padded batch, against ours packed. The same weights (the losses are
compared), the same batches of 8 samples, the LLM and the adapter trained; tokens of text and images per second,
padding not counted. The mixture is long-tailed: texts of 16 to 896 tokens (log-normal, median 60) with no image
(20 %), one (70 %) or two (10 %) of 64 tokens each.
cache: an epoch of stage 1 with CLIP ViT-L/14 at 224 px and a small LLM that reads cached features, against one that
computes them. Filling the cache, which takes the place of the first epoch, is not counted.
loss: peak memory from the last hidden states to their gradients, 2048 labelled positions, a vocabulary of 32064, above
what stood before (weights and their gradients); with a head of width 1024 that trains, and with one of width 4096 that
is frozen, as in stage 1 and under LoRA. (Where the latter trains, its new gradient, 525 MB on both sides, is most of
what the chunked loss takes: 653 MB against 834 MB.)
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from merge import Peak
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.loss.loss_utils import ForCausalLMLoss

from omnifusion_hf import OmniFusionConfig, OmniFusionForConditionalGeneration, OmniFusionImageProcessor
from omnifusion_hf.model.modeling_omnifusion import predict
from omnifusion_hf.training.collators import PaddingCollator, packing_collator
from omnifusion_hf.training.feature_cache import cached_dataset
from omnifusion_hf.training.loss import loss_of_answers
from omnifusion_hf.training.stages import apply_stage


BOUNDS = {"packing": 1.5, "cache": 3.0, "loss": 2.0, "loss-frozen": 2.0}  # at least so many times better
UNITS = {"packing": "s per 1000 tokens", "cache": "s per epoch", "loss": "MB", "loss-frozen": "MB"}
BATCH = 8
IMAGE, PAD = 0, 5
SMALL_VIT = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
VIT_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SMALL_LLM = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8}


class Samples(Dataset):
    """Encoded samples of random ids and pixels; the second half of each text is the answer."""

    def __init__(self, texts: list[int], images: list[int], side: int):
        generator = torch.Generator().manual_seed(0)
        self.samples = []
        for index, (text, views) in enumerate(zip(texts, images)):
            tokens = torch.randint(6, 4096, (text,), generator=generator).tolist()
            ids = [IMAGE] * (views * (side // 14) ** 2) + tokens
            labels = [-100] * (len(ids) - text // 2) + ids[len(ids) - text // 2 :]
            sample = {"name": f"sample {index}", "input_ids": ids, "labels": labels}
            if views:
                sample["pixel_values"] = torch.randn(views, 3, side, side, generator=generator)
                sample["image_view_index"] = torch.zeros(views, dtype=torch.long)
            self.samples.append(sample)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        return self.samples[index]


def long_tailed(batches: int) -> Samples:
    generator = np.random.default_rng(0)
    texts = generator.lognormal(np.log(60), 1.1, BATCH * batches).clip(16, 896).astype(int).tolist()
    return Samples(texts, generator.choice(3, BATCH * batches, p=[0.2, 0.7, 0.1]).tolist(), side=112)


def omnifusion(vision: dict, side: int) -> OmniFusionForConditionalGeneration:
    encoder = CLIPVisionConfig(**vision, patch_size=14, image_size=side)
    text = MistralConfig(**SMALL_LLM, num_key_value_heads=8, vocab_size=4096, pad_token_id=PAD)
    names = ("image", "image_start", "image_end", "user", "bot")
    ids = {f"{name}_token_id": row for row, name in enumerate(names)}
    torch.manual_seed(0)
    model = OmniFusionForConditionalGeneration(
        OmniFusionConfig(vision_config={"encoder_configs": [encoder]}, text_config=text, **ids)
    )
    model.loss_from_states = loss_of_answers
    return model


def llava_like(ours: OmniFusionForConditionalGeneration) -> LlavaForConditionalGeneration:
    """transformers' LLaVA with the same parts and weights, the vision tower frozen."""
    vision, text = ours.config.vision_config.encoder_configs[0], ours.config.text_config
    full = CLIPVisionConfig(**SMALL_VIT, patch_size=14, image_size=vision.image_size)
    llava = LlavaForConditionalGeneration(LlavaConfig(vision_config=full, text_config=text, image_token_id=IMAGE))
    weights = {name.replace("encoders.0.", ""): weight for name, weight in ours.state_dict().items()}
    absent = llava.load_state_dict(weights, strict=False)
    if absent.unexpected_keys or any("vision_tower" not in name for name in absent.missing_keys):
        raise ValueError(f"the models differ: {absent}")
    llava.model.vision_tower.requires_grad_(False)
    return llava


def stock_batch(samples: list[dict]) -> dict:
    return {key: value for key, value in PaddingCollator(PAD)(samples).items() if key != "image_view_index"}


class Clock(TrainerCallback):
    """When each step ended."""

    def on_train_begin(self, *args, **kwargs):
        self.ends = []

    def on_step_end(self, *args, **kwargs):
        self.ends.append(time.perf_counter())


def run(model: nn.Module, dataset: Dataset, collate: Callable, folder: str, **fields) -> tuple[list[float], float]:
    """When the steps of a Trainer run ended, in seconds, and the loss of the first one."""
    clock = Clock()
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=BATCH, train_sampling_strategy="sequential", remove_unused_columns=False,
        logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        learning_rate=0.0,  # all the work, but the weights stay, and the losses of all runs can be compared
        **fields,
    )  # fmt: skip
    trainer = Trainer(model, arguments, collate, dataset, callbacks=[clock])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock.ends, trainer.state.log_history[0]["loss"]


def packing_figures(repeats: int) -> tuple[float, float, float]:
    samples = long_tailed(batches=5)
    lengths = [len(sample["input_ids"]) for sample in samples.samples]
    ours = omnifusion(SMALL_VIT, side=112)
    stock = llava_like(ours)
    ours = apply_stage(ours, "finetune")
    packed = packing_collator(ours, PAD, max_length=1024)
    batches = [samples.samples[start : start + BATCH] for start in range(0, len(samples), BATCH)]
    for name, collate in (("padded", stock_batch), ("packed", packed)):
        places = sum(collate(batch)["input_ids"].numel() for batch in batches)
        print(f"{name}: {1 - sum(lengths) / places:.0%} padding")
    tokens = sum(lengths[BATCH:])  # the first step warms up
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            sides = [
                run(model, samples, collate, folder, num_train_epochs=1)
                for model, collate in ((ours, packed), (stock, stock_batch))
            ]
            check_equal(*(loss for _, loss in sides))
            pairs.append([1000 * (ends[-1] - ends[0]) / tokens for ends, _ in sides])
    return medians(pairs)


def cache_figures(repeats: int) -> tuple[float, float, float]:
    samples = Samples([60] * BATCH, [1] * BATCH, side=224)
    model = omnifusion(VIT_L, side=224)
    model = apply_stage(model, "pretrain")
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, use_cpu=True, per_device_train_batch_size=BATCH, disable_tqdm=True)
        cached = cached_dataset(samples, model, OmniFusionImageProcessor(), folder, arguments)
        for _ in range(repeats):
            sides = [run(model, d, PaddingCollator(PAD), folder, num_train_epochs=2) for d in (cached, samples)]
            check_equal(*(loss for _, loss in sides))
            pairs.append([ends[1] - ends[0] for ends, _ in sides])
    return medians(pairs)


def loss_figures(repeats: int, width: int = 1024, trained: bool = True) -> tuple[float, float, float]:
    config = OmniFusionConfig(text_config=MistralConfig(hidden_size=width, vocab_size=32064))
    torch.manual_seed(0)
    head = nn.Linear(width, 32064, bias=False).requires_grad_(trained)
    states, labels = torch.randn(1, 2048, width, requires_grad=True), torch.randint(0, 32064, (1, 2048))
    for weight in (states, head.weight):
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    sides = (
        lambda: loss_of_answers(states, labels, head, config),
        lambda: ForCausalLMLoss(predict(states, head, config), labels, vocab_size=32064),
    )
    pairs = []
    for _ in range(repeats):
        losses, peaks = zip(*map(loss_and_peak, sides))
        check_equal(*losses)
        pairs.append(peaks)
    return medians(pairs)


def loss_and_peak(side: Callable[[], torch.Tensor]) -> tuple[float, float]:
    with Peak("cpu") as peak:
        loss = side()
        loss.backward()
    return loss.item(), peak.extra


def check_equal(ours: float, theirs: float):
    print(f"losses {ours:.6f} and {theirs:.6f} (bound 1e-5)")
    if abs(ours - theirs) > 1e-5 * abs(theirs):
        raise ValueError(f"the losses differ: {ours} and {theirs}")


def medians(pairs: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Median of ours and of the peer's, and the median ratio of what was measured in turn."""
    ours, peer = (statistics.median(side) for side in zip(*pairs))
    return ours, peer, statistics.median(b / a for a, b in pairs)


FIGURES = {
    "packing": packing_figures,
    "cache": cache_figures,
    "loss": loss_figures,
    "loss-frozen": partial(loss_figures, width=4096, trained=False),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", choices=FIGURES)
    options = parser.parse_args()
    names = [options.only] if options.only else list(FIGURES)
    figures = {name: FIGURES[name](options.repeats) for name in names}
    print("| what | ours | peer | times better | at least |\n|---|---|---|---|---|")
    for name, (ours, peer, ratio) in figures.items():
        print(f"| {name}, {UNITS[name]} | {ours:.3g} | {peer:.3g} | {ratio:.2f} | {BOUNDS[name]} |")
    return int(any(ratio < BOUNDS[name] for name, (_, _, ratio) in figures.items()))


if __name__ == "__main__":
    sys.exit(main())
