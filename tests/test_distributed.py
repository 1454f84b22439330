"""Several processes, of which one has a batch without pictures: nobody waits, and all is as in one process."""

import os
import sys
from itertools import product
from pathlib import Path

import pytest
import ranks
import torch


ADAPTERS = ["mlp", "transformer", "concatenation", "summation", "attention"]
OPTIONS = [
    *product(["ddp", "ddp-unused", "fsdp2"], ["mlp"], ["adapter", "llm", "all"], ["plain", "checkpointing"]),
    *product(["ddp", "fsdp2"], ADAPTERS[1:], ["adapter", "all"], ["plain"]),
]
JOBS = [",".join(options) for options in OPTIONS]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # Python 3.11's fork server knows no other
        assert ranks.run_ranks(folder, *JOBS) == [0, 0]
    return folder


@pytest.mark.parametrize("job", JOBS)
def test_case_05_two_ranks_of_which_one_has_no_picture_give_the_loss_and_gradients_of_one_process(results, job):
    alone, together = ranks.reference(job), torch.load(results / f"{job}.pt")
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert set(together["gradients"]) == set(alone["gradients"])
    for name, gradient in alone["gradients"].items():
        torch.testing.assert_close(together["gradients"][name], gradient, rtol=1e-5, atol=1e-6)
    adapter = [gradient for name, gradient in alone["gradients"].items() if "multi_modal_projector" in name]
    assert adapter and any(gradient.any() for gradient in adapter)


@pytest.mark.parametrize("job", ["ddp,mlp,llm,plain", "fsdp2,transformer,adapter,plain"])
def test_case_05_control_without_the_blank_view_the_ranks_do_not_come_together(results, tmp_path, job):
    folder = tmp_path / "out"
    assert 0 not in ranks.run_ranks(folder, job, cured=False)
    assert not list(folder.iterdir())
