"""robustness/attack.py: PGD keeps its bound and raises the loss more than random changes, for every kind of view."""

from contextlib import nullcontext
from unittest.mock import Mock

import pytest
import tiny
import torch
from transformers.feature_extraction_utils import BatchFeature

from omnifusion_hf.evaluation.questions import Question
from omnifusion_hf.evaluation.robustness.attack import Attack, pgd, random_signs, with_labels


TRUTHS = ("The sky is blue.", "Green.")


def question(chat: list, truth: str = TRUTHS[0], images: int = 1) -> Question:
    return Question("0", "t", chat, truth, [[]] * images)


def batch_of(processor, count: int = 2, images: int = 1) -> BatchFeature:
    seeds = [range(images * n, images * (n + 1)) for n in range(count)]
    chats = [[tiny.user(*(tiny.image(seed, (40, 90)) for seed in own), "What is it?")] for own in seeds]
    return with_labels(processor, chats, [question(chat, TRUTHS[n % 2], images) for n, chat in enumerate(chats)])


def loss(model, batch: BatchFeature, pixel_values: torch.Tensor) -> float:
    with torch.no_grad():
        return model(**batch | {"pixel_values": pixel_values}).loss.item()


def colours(model, pixel_values: torch.Tensor) -> torch.Tensor:
    normalization = model.config.vision_config.image_normalizations[0]
    mean, std = (torch.tensor(normalization[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
    return pixel_values * std + mean


@pytest.fixture(scope="module")
def two_encoders():
    """Encoders that differ in size and normalisation, so that the gradient passes their resizing as well."""
    text = tiny.text_config(initializer_range=0.2)
    config = tiny.config(("clip", "siglip"), text, image_sizes=[32, 48], projector_type="concatenation")
    return tiny.model(config), batch_of(tiny.processor(config, view_strategy="grid"), images=2)


@pytest.fixture(params=["processor", "grid_processor", "two encoders and two images"])
def attacked(request, model, two_encoders):
    """A model and a batch of its inputs."""
    if request.param.startswith("two"):
        return two_encoders
    return model, batch_of(request.getfixturevalue(request.param))


def test_labels_are_only_the_last_answer(processor):
    chats, truths = [[tiny.user(tiny.image(), "Which?")]], ["The sky is blue.", "The sky is green."]
    chats.append([tiny.user(tiny.image(), "First?"), tiny.assistant("Yes."), tiny.user("Second?")])
    labels = with_labels(processor, chats, [question(*pair) for pair in zip(chats, truths)])["labels"]
    learnt = [processor.decode(row[row != -100], skip_special_tokens=True).strip() for row in labels]
    assert learnt == truths


@pytest.mark.parametrize("change", [pgd, random_signs])
def test_changes_reach_the_bound_and_keep_it_and_colours_stay_in_range(attacked, change):
    model, batch = attacked
    attack = Attack(epsilon=8)
    changed, clean = (colours(model, pixels) for pixels in (change(model, batch, attack), batch["pixel_values"]))
    assert 0.9 * attack.bound < (changed - clean).abs().max() <= attack.bound + 1e-6
    assert changed.min() >= -1e-6 and changed.max() <= 1 + 1e-6


def test_pgd_raises_the_loss_more_than_random_signs_and_with_epsilon_0_changes_nothing(attacked):
    model, batch = attacked
    clean = loss(model, batch, batch["pixel_values"])
    rise, chance = (loss(model, batch, change(model, batch, Attack(8))) - clean for change in (pgd, random_signs))
    assert rise > 0 and rise > 3 * abs(chance)
    assert torch.equal(pgd(model, batch, Attack(0, steps=2)), batch["pixel_values"])
    assert not torch.equal(pgd(model, batch, Attack(1, steps=2)), batch["pixel_values"])


def test_more_steps_hurt_more_and_the_seed_decides_the_start(model, processor):
    batch = batch_of(processor)
    first, again, other = (pgd(model, batch, Attack(8, steps=1, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert loss(model, batch, pgd(model, batch, Attack(8))) > loss(model, batch, first)


def test_the_batch_does_not_change_the_attack_on_a_question(model, processor):
    together, alone = batch_of(processor), batch_of(processor, count=1)
    first = pgd(model, alone, Attack(4, steps=2))
    same = pgd(model, together, Attack(4, steps=2))[: len(first)]
    other = pgd(model, alone, Attack(4, steps=2, seed=1))  # control
    share, control = ((first - changed).abs().gt(1e-5).float().mean() for changed in (same, other))
    assert share < 0.001 and control > 0.1  # a gradient near 0 may turn its sign


@pytest.mark.parametrize("interrupted", [False, True])
def test_weights_require_no_gradient_during_an_attack_after_which_the_model_is_as_before(
    model, processor, monkeypatch, interrupted
):
    required, seen = [parameter.requires_grad for parameter in model.parameters()], []
    hook = model.register_forward_pre_hook(lambda *_: seen.append(any(p.requires_grad for p in model.parameters())))
    if interrupted:
        monkeypatch.setattr(torch.autograd, "grad", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
        pgd(model, batch_of(processor, count=1), Attack(4, steps=2))
    hook.remove()
    assert seen == [False] * (2 - interrupted) and any(required)
    assert [parameter.requires_grad for parameter in model.parameters()] == required
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("epsilon, steps", [(-1, 10), (256, 10), (8, 0)])
def test_invalid_settings_are_refused(epsilon, steps):
    with pytest.raises(ValueError, match="epsilon must lie in 0..255"):
        Attack(epsilon, steps)
