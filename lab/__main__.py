"""The miniature world from seeds to the bundled model: `python -m lab`.

A stage with finished output is skipped, and an interrupted one continues where it stopped, so the command may be
interrupted and started again at any time. `--only STAGE` runs one stage.
"""

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

from omnifusion_hf.io import write_whole

from . import assemble, dataset, evaluate, pretrain_encoder, pretrain_llm


HERE = Path(__file__).parent
OUT = HERE / "out"
TINY = HERE.parent / "omnifusion_hf" / "tiny"


def images(options: argparse.Namespace) -> None:
    for name in dataset.PLANS:
        dataset.write_dataset(OUT / "train", name, options.processes)


def encoder(options: argparse.Namespace) -> None:
    pretrain_encoder.train(OUT / "encoder")


def llm(options: argparse.Namespace) -> None:
    pretrain_llm.train(OUT / "llm")


def assembled(options: argparse.Namespace) -> None:
    assemble.assemble(OUT / "encoder" / "encoder", OUT / "llm" / "llm", OUT / "assembled")


def export(options: argparse.Namespace) -> None:
    size = assemble.export(OUT / "stage2_end", TINY)
    write_whole(OUT / "exported.json", json.dumps({"folder": str(TINY), "bytes": size}))


def evaluation(options: argparse.Namespace) -> None:
    evaluate.evaluate_folder(TINY, "test", 500, OUT / "evaluation.json")


def train(stage: str, options: argparse.Namespace) -> None:
    """Runs `omnifusion train`; several processes share the batch of the recipe."""
    launcher = [sys.executable, "-m"]
    recipe = ["omnifusion_hf.cli", "train", str(HERE / "recipes" / f"{stage}.yaml")]
    if options.processes > 1:
        launcher += ["torch.distributed.run", f"--nproc-per-node={options.processes}", "-m"]
        recipe += [f"per_device_train_batch_size={32 // options.processes}"]
    subprocess.run([*launcher, *recipe], check=True, cwd=HERE.parent)


# stage -> (function, the output that exists when the stage is finished)
STAGES = {
    "images": (images, OUT / "train" / "stage2_end.json"),
    "encoder": (encoder, OUT / "encoder" / "encoder"),
    "llm": (llm, OUT / "llm" / "llm"),
    "assembled": (assembled, OUT / "assembled"),
    "stage1": (partial(train, "stage1"), OUT / "stage1" / "training_summary.json"),
    "stage2": (partial(train, "stage2"), OUT / "stage2" / "training_summary.json"),
    "stage2_end": (partial(train, "stage2_end"), OUT / "stage2_end" / "training_summary.json"),
    "export": (export, OUT / "exported.json"),
    "evaluation": (evaluation, OUT / "evaluation.json"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=STAGES, help="run only this stage")
    parser.add_argument("--processes", type=int, default=1, help="for rendering and for stages 1 and 2")
    options = parser.parse_args()
    for name in [options.only] if options.only else STAGES:
        run, output = STAGES[name]
        if output.exists():
            print(f"{name}: already finished ({output.relative_to(HERE.parent)})")
            continue
        print(f"{name}: runs", flush=True)
        run(options)


if __name__ == "__main__":
    main()
