"""Peak memory of a conversion over the size of its largest shard, on a synthetic release.

    python benchmarks/conversion.py [--gigabytes 2.5] [--shards 2]

The conversion runs in a separate process. The memory of importing torch and transformers (measured first) is printed
beside the peak and not subtracted. Linux only.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import MistralConfig, MistralForCausalLM


ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests/helpers")]

from release import WIDTH, shard, write_release, write_vision_tower  # noqa: E402


def grow(folder: Path, gigabytes: float, shards: int):
    """Replaces the tiny LLM by one of about this size in bfloat16 and the same width."""
    llm = folder / "OmniMistral-v1_1" / "tuned-model"
    config = MistralConfig.from_pretrained(llm)
    config.intermediate_size, layers = 2**20, max(1, round(gigabytes * 1e9 / (3 * WIDTH * 2**20 * 2)))
    config.num_hidden_layers = layers
    torch.set_default_dtype(torch.bfloat16)
    MistralForCausalLM(config).save_pretrained(llm)
    shard(llm, shards)


def peak_gigabytes(code: str) -> float:
    """Peak resident memory of a Python process that runs `code`."""
    # not getrusage: its peak survives exec, and would be this process's own
    report = "print('peak', next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    command = [sys.executable, "-c", f"{code}\n{report}"]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return int(output.split("peak")[-1]) * 1024 / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=2.5)
    parser.add_argument("--shards", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_release(folder / "release")
        tower = write_vision_tower(folder / "tower")
        grow(folder / "release", args.gigabytes, args.shards)
        files = (folder / "release").rglob("*.safetensors")
        largest = max(file.stat().st_size for file in files) / 1e9
        imports = "from conversion.convert_omnifusion import convert"
        base = peak_gigabytes(imports)
        call = f"convert({str(folder / 'release')!r}, {str(tower)!r}, {str(folder / 'model')!r})"
        peak = peak_gigabytes(f"{imports}\n{call}")
    print(f"largest shard {largest:.2f} GB, imports alone {base:.2f} GB, peak {peak:.2f} GB")
    print(f"peak / largest shard = {peak / largest:.2f} (bound 1.3)")
    return 0 if peak <= 1.3 * largest else 1


if __name__ == "__main__":
    sys.exit(main())
