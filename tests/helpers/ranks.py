"""Two processes on a CPU. `run_ranks` wraps tiny models as `accelerate` would and writes the loss and gradients of one
step; `ask_on_ranks` answers questions.

Rank 0's batch has an image, rank 1's has none. `run_ranks(folder, *jobs)` leaves one file a job in the folder; a job
is `parallel,projector_type,trained,checkpointing`, and the words that each of these may be are below.
"""

import multiprocessing
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import tiny
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from omnifusion_hf.evaluation.asking import ask_questions
from omnifusion_hf.evaluation.questions import read_questions
from omnifusion_hf.model import modeling_omnifusion
from omnifusion_hf.training.lora import LoraSettings
from omnifusion_hf.training.loss import loss_of_answers
from omnifusion_hf.training.stages import apply_stage


TIMEOUT = timedelta(seconds=20)  # of one collective: a rank that waits longer waits forever


def make_model(projector_type: str, trained: str, checkpointing: str):
    """`trained`: `adapter` as in stage 1, `lora` or `llm` as in stage 2, `all` with the encoders."""
    encoders = ["clip"] if projector_type == "mlp" else ["clip", "siglip"]
    model = tiny.model(tiny.config(encoders, projector_type=projector_type, projector_dropout=0.0))
    model.loss_from_states = loss_of_answers  # as in training
    stage = {"adapter": "pretrain", "lora": "lora"}.get(trained, "finetune")
    lora = LoraSettings(rank=4, alpha=8, dropout=0.0)
    model = apply_stage(model, stage, "full" if trained == "all" else "frozen", lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # starts at zero and would hide the other factor
            parameter.data.normal_(std=0.05)
    if checkpointing == "checkpointing":
        tiny.checkpoint_activations(model)
    return model.train()


def batches(config) -> list[dict]:
    """One batch with an image and a shorter one without."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(3, 400, (2, 9), generator=generator)
    image = torch.full((1, config.image_seq_length), config.image_token_id)
    with_image = torch.cat([words[:1, :4], image, words[:1, 4:]], dim=1)
    labels = with_image.masked_fill(with_image == config.image_token_id, -100)
    pixels = torch.randn(1, 3, 32, 32, generator=generator)
    text = words[1:, :5]
    return [{"input_ids": with_image, "labels": labels, "pixel_values": pixels}, {"input_ids": text, "labels": text}]


def loss_of(model, batch: dict, config) -> torch.Tensor:
    """This batch's part of the mean over the tokens of all batches, as Trainer computes it."""
    items = sum(int((other["labels"][:, 1:] != -100).sum()) for other in batches(config))
    return model(**batch, num_items_in_batch=items).loss


def reference(job: str) -> dict:
    """Loss and gradients of both batches in one process."""
    model = make_model(*job.split(",")[1:])
    loss = sum(loss_of(model, batch, model.config) for batch in batches(model.config))
    loss.backward()
    return {"loss": loss.item(), "gradients": gradients(model)}


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    return {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in found.items()}


def wrap(model, parallel: str):
    """`ddp`, `ddp-unused` (looks for unused parameters), `fsdp2` (by accelerate's own code: its Accelerator would
    fall back to DDP on a CPU)."""
    if parallel == "fsdp2":
        policy = {"auto_wrap_policy": "transformer_based_wrap", "cpu_ram_efficient_loading": False}
        state = SimpleNamespace(fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2, **policy))
        accelerator = SimpleNamespace(state=state, mixed_precision="no", is_main_process=True, device="cpu")
        return fsdp2_prepare_model(accelerator, model)
    return DistributedDataParallel(model, find_unused_parameters=parallel == "ddp-unused")


def step(parallel: str, *options: str) -> dict:
    model = make_model(*options)
    config = model.config
    wrapped = wrap(model, parallel)
    loss = loss_of(wrapped, batches(config)[dist.get_rank()], config)
    (loss * dist.get_world_size()).backward()
    dist.all_reduce(loss.data)
    return {"loss": loss.item(), "gradients": gradients(model)}


def run_rank(rank: int, folder: Path, jobs: tuple[str, ...], cured: bool):
    store = f"file://{folder}.store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=TIMEOUT)
    if not cured:
        modeling_omnifusion.trains_on_many_ranks = lambda: False
    for job in jobs:
        result = step(*job.split(","))
        if rank == 0:
            torch.save(result, folder / f"{job}.pt")
    dist.destroy_process_group()


def run_ranks(folder: Path, *jobs: str, cured: bool = True) -> list[int]:
    folder.mkdir()
    return start_ranks(run_rank, folder, jobs, cured)


def join_as(rank: int, store: Path):
    """Makes this process one of two, which find each other by the file `store`."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=TIMEOUT)


def ask_rank(rank: int, data: Path, output: Path, model: Path, options: dict):
    join_as(rank, Path(f"{output}.store"))
    ask_questions(read_questions(data), output, model, **options)
    dist.destroy_process_group()


def ask_on_ranks(data: Path, output: Path, model: Path, **options) -> list[int]:
    return start_ranks(ask_rank, data, output, model, options)


def start_ranks(target: Callable, *arguments) -> list[int]:
    """Exit codes of two processes; they end by themselves where one of them would wait forever."""
    context = multiprocessing.get_context("forkserver")  # not fork: autograd may have threads
    context.set_forkserver_preload(["ranks"])
    processes = [context.Process(target=target, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    return [process.exitcode for process in processes]
