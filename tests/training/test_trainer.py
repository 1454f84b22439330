"""The trainer: batches of similar length, which a resumed run takes in their order."""

from types import SimpleNamespace

import pytest
from training_runs import changed, figures, rerun, run, weights

from omnifusion_hf.training.trainer import LengthGroupedSampler, OmniFusionTrainer


def padding(lengths: list[int], order: list[int], batch_size: int = 4) -> float:
    """Share of padding in batches of samples in this order."""
    lengths = [lengths[index] for index in order]
    batches = [lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size)]
    return 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)


LENGTHS = [10 + 17 * index % 97 for index in range(96)]


def test_padding_falls_and_every_epoch_has_every_sample_once_in_an_order_of_its_own():
    epochs = [0, 1, 0]
    sampler = LengthGroupedSampler(LENGTHS, 4, seed=1, current_epoch=lambda: epochs[0])
    orders = []
    while epochs:
        orders.append(list(sampler))
        epochs.pop(0)
    assert all(sorted(order) == list(range(96)) for order in orders)
    assert padding(LENGTHS, range(96)) > 0.25 > 0.15 > padding(LENGTHS, orders[0])
    assert orders[0] == orders[2] != orders[1]
    assert LENGTHS[orders[0][0]] == max(LENGTHS)
    sampler = LengthGroupedSampler([5, 3, 9, 1, 7, 2, 8, 4], 1, seed=3, current_epoch=lambda: 1)
    assert list(sampler) == [2, 7, 6, 3, 1, 5, 4, 0]  # as in runs of earlier versions


def test_the_epoch_of_an_order_counts_from_0_and_a_part_of_one_is_no_new_one():
    states = [SimpleNamespace(state=SimpleNamespace(epoch=epoch)) for epoch in (None, 0.0, 0.9, 1.5)]
    assert list(map(OmniFusionTrainer.current_epoch, states)) == [0, 0, 0, 1]


@pytest.mark.parametrize(("count", "batch_size", "sorted_together"), [(96, 4, 24), (1000, 4, 200), (7, 4, 4)])
def test_as_many_batches_are_sorted_together_as_the_data_allow_up_to_fifty(count, batch_size, sorted_together):
    """A quarter of the data; a single batch would leave the order random."""
    lengths = list(range(count))
    order = list(LengthGroupedSampler(lengths, batch_size, 0, lambda: 0))
    parts = [order[start : start + sorted_together] for start in range(0, count, sorted_together)]
    rests = [part[1:] for part in parts]  # the longest sample of all comes first instead of a part's own
    assert all(rest == sorted(rest, reverse=True) for rest in rests)
    assert order[0] == count - 1 and order != sorted(order, reverse=True)


def test_run_takes_batches_of_similar_length_and_resumes_in_their_order(tmp_path, base):
    changes = {"train_sampling_strategy": "group_by_length", "max_steps": 7, "save_steps": 6}
    run(tmp_path / "run", base, **changes)
    whole = weights(tmp_path / "run/out")
    losses = figures(tmp_path / "run/out", "loss")
    assert losses[:4] != losses[4:]
    (tmp_path / "run/out/model.safetensors").unlink()
    rerun(tmp_path / "run/recipe.yaml", f"resume_from_checkpoint={tmp_path}/run/out/checkpoint-6")
    assert not changed(whole, weights(tmp_path / "run/out"))
    run(tmp_path / "random", base, **changes | {"train_sampling_strategy": "random"})
    assert changed(whole, weights(tmp_path / "random/out"))
