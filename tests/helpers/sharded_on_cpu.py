"""`omnifusion train` under FSDP2 or ZeRO-3 on a CPU: accelerate, which launches it, would shard there nothing.

Each argument is a recipe; two steps of it are run, and two more by resuming.
"""

import os
import sys

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from omnifusion_hf.cli import main


def shard_by_fsdp(state: AcceleratorState, *args, fsdp_plugin=None, **options):
    """What accelerate does where there are several GPUs."""
    init(state, *args, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None:
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        state.fsdp_plugin = fsdp_plugin


init = AcceleratorState.__init__
if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
    PartialState._prepare_backend = lambda *args: ("gloo", DistributedType.MULTI_CPU)
else:
    AcceleratorState.__init__ = shard_by_fsdp

for recipe in sys.argv[1:]:
    for overrides in (["max_steps=2"], ["max_steps=4", "resume_from_checkpoint=true"]):
        if main(["train", recipe, *overrides]):
            sys.exit(1)
