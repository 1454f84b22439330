"""The paper's ablations (arXiv 2404.06212, section 4) in the miniature world: `python -m lab.ablations`.

A run is one experiment with one seed, which draws the adapter's weights and the order of the data. It uses the
package as users do: assemble, `train` with a recipe per stage, save, load, evaluate. A finished run writes one JSON
file and is skipped from then on, so the command may be interrupted and started again. lab.ablation_report makes tables
and figure of docs/ from these files.
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from tqdm import tqdm

from omnifusion_hf.io import staged_folder, write_whole

from .ablation_report import report


HERE = Path(__file__).parent
OUT = HERE / "out"
RESULTS = OUT / "ablations" / "results"
SMALL = OUT / "ablations" / "small"
LLM = OUT / "ablations" / "llm"
DOCUMENT = HERE.parent / "docs" / "ablations.md"
DEMO = HERE.parent / "omnifusion_hf" / "tiny"
ENCODERS = {
    "clip": OUT / "ablations" / "clip" / "encoder",
    "dinov2": OUT / "ablations" / "dinov2" / "encoder",
    "swin": OUT / "encoder" / "encoder",
}
# A region is twice as wide as its box, so that things are about as large as in the encoders' training data.
IMAGE_OPTIONS = {
    "whole": {},
    "grid": {"view_strategy": "grid", "grid_canvases": [[2, 2]]},
    "regions": {"region_context": 1.0},
}
SEEDS = (0, 1, 2)
BATCH = 32
STEPS = {"stage1": 80, "stage2": 140}
SAMPLES_PER_TOPIC = 200
PLAIN_TOPICS = ("colour", "shape", "count", "digit", "text, 1 character", "text, 2 characters", "text, 3 characters")


@dataclass(frozen=True)
class Experiment:
    """One row of the table.

    encoders: keys of ENCODERS. config: fields of OmniFusionConfig. views: "whole", "grid" or "regions" (of a perfect
    detector). world: "plain", or "small" for lab.small's images. stages: without stage 1, stage 2 has its steps too.
    """

    name: str
    encoders: tuple[str, ...] = ("clip",)
    config: dict = field(default_factory=lambda: {"projector_type": "mlp"})
    views: str = "whole"
    world: str = "plain"
    stages: tuple[str, ...] = ("stage1", "stage2")


MIX = ("clip", "dinov2")
EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment("mlp"),
        Experiment("transformer", config={"projector_type": "transformer", "projector_intermediate_size": 512}),
        Experiment("mlp, stage 2 alone", stages=("stage2",)),
        Experiment("concatenation", MIX, {"projector_type": "concatenation", "projector_intermediate_size": 512}),
        Experiment("summation", MIX, {"projector_type": "summation"}),
        Experiment("summation, CLIP alone", config={"projector_type": "summation"}),
        Experiment("attention", MIX, {"projector_type": "attention", "projector_num_queries": 64}),
        Experiment("whole", ("swin",), world="small"),
        Experiment("grid", ("swin",), views="grid", world="small"),
        Experiment("regions", ("swin",), views="regions", world="small"),
    )
}


def prepare() -> None:
    """Makes the missing parts that all runs share. Raises `ValueError` without the outputs of `python -m lab`."""
    from . import ablation_data, pretrain_encoder, pretrain_painter

    for path in (OUT / "train" / "stage2.json", ENCODERS["swin"], DEMO):
        if not path.exists():
            raise ValueError(f"{path} is missing; `python -m lab` makes it.")
    makers = {
        ENCODERS["clip"]: lambda path: pretrain_encoder.train(path.parent, "clip", steps=2400, batch_size=32),
        ENCODERS["dinov2"]: lambda path: pretrain_painter.train(path.parent),
        SMALL: ablation_data.write_small_images,
        LLM: take_llm,
    }
    for path, make in makers.items():
        if not path.exists():
            make(path)


def take_llm(path: Path) -> None:
    """The bundled model's LLM with its tokenizer, as an ordinary causal language model."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer, MistralForCausalLM

    import omnifusion_hf  # noqa: F401  registers the classes

    demo = AutoModelForImageTextToText.from_pretrained(DEMO)
    llm = MistralForCausalLM(demo.config.text_config).float()
    llm.model.load_state_dict(demo.model.language_model.state_dict())
    llm.lm_head.load_state_dict(demo.lm_head.state_dict())
    with staged_folder(path) as folder:
        llm.save_pretrained(folder)
        AutoTokenizer.from_pretrained(DEMO).save_pretrained(folder)


def result_path(results: Path, name: str, seed: int) -> Path:
    return results / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}.json"


def missing_runs(results: Path, names: list[str], seeds=SEEDS) -> list[tuple[str, int]]:
    """(experiment, seed) without a finished file, seed by seed, so that all rows fill at the same rate."""
    return [(name, seed) for seed in seeds for name in names if not result_path(results, name, seed).exists()]


def assemble(experiment: Experiment, seed: int, folder: Path) -> None:
    from .assemble import put_together

    parts = {"vision": [str(ENCODERS[name]) for name in experiment.encoders], "text": str(LLM)}
    put_together(parts | experiment.config, folder, seed)


def write_data(experiment: Experiment, stage: str, seed: int, steps: int, folder: Path) -> dict[str, Path]:
    """Writes the stage's JSON file and returns the recipe's fields for it. Stage 1 is always plain."""
    from .ablation_data import plain_samples, small_samples, write_stage

    plain = experiment.world == "plain" or stage == "stage1"
    # Without the experiment's name: all experiments of a world read the same data in the same order.
    rng = Random(f"{experiment.world}/{stage}/{seed}")
    images = OUT / "train" if plain else SMALL
    if plain:
        samples = plain_samples(images, rng, steps * BATCH)
    else:
        samples = small_samples(images, rng, steps * BATCH, experiment.views == "regions")
    write_stage(folder / f"{stage}.json", samples, rng)
    return {"data_path": folder / f"{stage}.json", "image_folder": images}


def steps_of(experiment: Experiment, steps: dict[str, int]) -> dict[str, int]:
    """Without stage 1, stage 2 gets its steps too, so that all runs of a world read the same number of samples."""
    return steps if len(experiment.stages) > 1 else {"stage2": sum(steps.values())}


def train_stages(experiment: Experiment, seed: int, steps: dict[str, int], folder: Path) -> dict:
    """Trains `folder`/assembled and returns each stage's summary; the trained model is `folder`/stage2."""
    from omnifusion_hf.training.arguments import parse_recipe
    from omnifusion_hf.training.train import train

    start, summaries = folder / "assembled", {}
    for stage in experiment.stages:
        if stage == "stage2":
            set_views(start, experiment.views)
        given = write_data(experiment, stage, seed, steps[stage], folder)
        given |= {"model_name_or_path": start, "output_dir": folder / stage, "seed": seed}
        recipe = HERE / "recipes" / f"ablation_{stage}.yaml"
        summaries[stage] = train(*parse_recipe(str(recipe), [f"{key}={value}" for key, value in given.items()]))
        start = folder / stage
    return summaries


def set_views(folder: Path, views: str) -> None:
    """Sets the views of a saved processor after stage 1, which has whole images in every run."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    for name, value in IMAGE_OPTIONS[views].items():
        setattr(processor.image_processor, name, value)
    processor.save_pretrained(folder)


def evaluate_run(experiment: Experiment, folder: Path, split: str, count: int, blind: bool) -> dict:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from .evaluate import evaluate, examples
    from .small import TOPICS, small_examples

    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
    processor = AutoProcessor.from_pretrained(folder)
    if experiment.world == "plain":
        return evaluate(model, processor, split, count, PLAIN_TOPICS, blind, examples)
    examples_of = partial(small_examples, regions=experiment.views == "regions")
    return evaluate(model, processor, split, count, TOPICS, blind, examples_of)


def run(name: str, seed: int, results: Path, steps: dict[str, int], split: str, count: int) -> None:
    """One run from pretrained parts to its JSON file."""
    import torch
    from transformers import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    experiment, start = EXPERIMENTS[name], time.process_time()
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        assemble(experiment, seed, folder / "assembled")
        stages = train_stages(experiment, seed, steps_of(experiment, steps), folder)
        trained = time.process_time()
        topics = evaluate_run(experiment, folder / "stage2", split, count, blind=seed == SEEDS[0])
    seconds = {"training": trained - start, "evaluation": time.process_time() - trained}
    result = {"experiment": name, "seed": seed, "split": split, "cpu_seconds": seconds, "stages": stages}
    write_whole(result_path(results, name, seed), json.dumps(result | {"topics": topics}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=EXPERIMENTS, action="append", help="only these experiments")
    parser.add_argument("--seed", type=int, action="append", help=f"only these seeds; default: {SEEDS}")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--steps", type=int, nargs=2, default=list(STEPS.values()), metavar=("STAGE1", "STAGE2"))
    parser.add_argument("--count", type=int, default=SAMPLES_PER_TOPIC, help="samples per topic")
    options = parser.parse_args()
    prepare()
    runs = missing_runs(options.results, options.only or list(EXPERIMENTS), options.seed or SEEDS)
    steps = dict(zip(STEPS, options.steps, strict=True))
    rest = (options.results, steps, options.split, options.count)
    # A process per run: oneDNN keeps kernels and buffers for every length of a batch.
    with ProcessPoolExecutor(options.processes, get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = [pool.submit(run, name, seed, *rest) for name, seed in runs]
        for job in tqdm(as_completed(jobs), total=len(jobs), desc="runs", unit="run"):
            if job.exception():
                pool.shutdown(wait=False, cancel_futures=True)
            job.result()
    if options.results == RESULTS:
        report(RESULTS, DOCUMENT, list(EXPERIMENTS))


if __name__ == "__main__":
    main()
