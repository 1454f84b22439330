"""Evaluation while training: exact loss and scores, held-out samples, the best checkpoint, early stopping."""

import json

import conversations
import pytest
import torch
from training_runs import changed, launch, log_of, rerun, run, weights
from transformers import AutoModelForImageTextToText, AutoProcessor

from omnifusion_hf.inference import answer_question
from omnifusion_hf.training.conversations import BadSamples
from omnifusion_hf.training.mixture import Source, load_data
from omnifusion_hf.training.validation import hold_out


EVERY_2 = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 3}
METRICS = ["exact_match", "edit_distance"]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> str:
    """A file of five samples."""
    folder = tmp_path_factory.mktemp("held_out")
    return str(conversations.write(folder, [conversations.sample(index) for index in range(5)]))


def loss_over_tokens(folder, path: str) -> float:
    """Sample by sample, without the code under test."""
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    losses = tokens = 0
    for sample in load_data(Source(path), 0, BadSamples()):
        batch = conversations.collate(processor, [sample])
        number = (batch["labels"] != -100).sum().item()
        with torch.no_grad():
            losses, tokens = losses + model(**batch).loss.item() * number, tokens + number
    return losses / tokens


@pytest.mark.parametrize("changes", [{}, {"packing": True, "max_length": 200}, {"stage": "lora", "lora_rank": 4}])
def test_the_loss_is_the_mean_over_answer_tokens_and_training_is_undisturbed(changes, tmp_path, base, held_out):
    summary = run(tmp_path / "with", base, eval_data_path=held_out, eval_metrics=METRICS, **EVERY_2, **changes)
    run(tmp_path / "without", base, **changes)
    assert not changed(weights(tmp_path / "with/out"), weights(tmp_path / "without/out"))
    found = log_of(tmp_path / "with/out", "eval_loss")
    assert [entry["step"] for entry in found] == [2, 4]
    assert found[0]["eval_loss"] != found[1]["eval_loss"] == summary["eval_loss"]  # control: it changes
    assert 0 <= summary["eval_exact_match"] <= 1 and 0 < summary["eval_edit_distance"] <= 1
    if not changes:
        assert summary["eval_loss"] == pytest.approx(loss_over_tokens(tmp_path / "with/out", held_out), rel=1e-5)


def test_scores_are_those_of_the_models_own_answers(tmp_path, base):
    fields = {"stage": "finetune", "max_steps": 60, "learning_rate": 0.01, "save_steps": 60, "eval_steps": 60}
    summary = run(tmp_path, base, eval_share=0.25, eval_metrics=["exact_match"], **EVERY_2 | fields)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    data = load_data(Source(str(tmp_path / "data/samples.json")), 42, BadSamples())
    _, held_out = hold_out(data, 0.25, 42)
    right = 0
    for sample in held_out:
        question, answer = sample["messages"]
        image, text = question["content"]
        right += answer_question(model, processor, [image["image"]], text["text"]) == answer["content"][0]["text"]
    assert summary["eval_exact_match"] == right / len(held_out) and summary["samples"] == 6


def test_the_best_checkpoint_is_kept_and_training_stops_early(tmp_path, base, held_out):
    fields = {"eval_data_path": held_out, "learning_rate": 3.0, "max_steps": 40, "save_steps": 1, "eval_steps": 1}
    fields |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "early_stopping_patience": 2}
    summary = run(tmp_path, base, **EVERY_2 | fields, stage="finetune", save_total_limit=2)
    losses = [entry["eval_loss"] for entry in log_of(tmp_path / "out", "eval_loss")]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 40 and summary["eval_loss"] == min(losses) < losses[-1]
    assert not changed(weights(tmp_path / "out"), weights(tmp_path / f"out/checkpoint-{best + 1}"))
    assert changed(weights(tmp_path / "out"), weights(tmp_path / f"out/checkpoint-{best + 3}"))  # control
    resumed = f"output_dir={tmp_path / 'resumed'}"
    rerun(tmp_path / "recipe.yaml", resumed, f"max_steps={best + 2}")  # early stopping has waited for a step
    for _ in range(2):  # again when it has stopped
        rerun(tmp_path / "recipe.yaml", resumed, "resume_from_checkpoint=true")
        assert len(log_of(tmp_path / "resumed", "eval_loss")) == best + 3


def test_scores_are_of_the_last_weights_if_the_best_were_not_saved(tmp_path, base, held_out):
    fields = EVERY_2 | {"eval_data_path": held_out, "learning_rate": 3.0, "save_steps": 4, "eval_steps": 1}
    summary = run(tmp_path, base, **fields, stage="finetune", load_best_model_at_end=True)
    losses = [entry["eval_loss"] for entry in log_of(tmp_path / "out", "eval_loss")]
    assert summary["eval_loss"] == losses[-1] > min(losses)


def test_processes_share_the_evaluation(tmp_path, base, held_out):
    fields = {"eval_data_path": held_out, "eval_metrics": METRICS, **EVERY_2, "max_steps": 2}
    alone = run(tmp_path / "alone", base, **fields, global_batch_size=2)
    sizes = {"global_batch_size": 2, "per_device_train_batch_size": 1}
    recipe = conversations.write_recipe(tmp_path / "two", base, **fields | sizes)
    launch("ddp", "-m", "omnifusion_hf.cli", "train", recipe)
    shared = json.loads((tmp_path / "two/out/training_summary.json").read_text())
    for name in ("eval_loss", *(f"eval_{metric}" for metric in METRICS)):
        assert shared[name] == pytest.approx(alone[name], rel=1e-4)


def test_held_out_samples_are_a_function_of_the_seed_and_do_not_train(held_out):
    data = load_data(Source(held_out), 0, BadSamples())
    (train, test), (again, _), (other, _) = (hold_out(data, 0.4, seed) for seed in (1, 1, 2))
    names = [[sample["name"] for sample in part] for part in (train, test, again, other)]
    assert sorted(names[0] + names[1]) == sorted(sample["name"] for sample in data)
    assert len(test) == 2 and names[0] == names[2] != names[3]
    with pytest.raises(ValueError, match=r"eval_share 0.01 of 5 samples is 0"):
        hold_out(data, 0.01, 0)


def test_a_sample_that_a_mixture_draws_often_is_held_out_once_or_trains(held_out, tmp_path):
    (tmp_path / "many").mkdir()
    few, many = held_out, conversations.write(tmp_path / "many", [conversations.sample(i) for i in range(40)])
    (tmp_path / "mixture.yaml").write_text(f"sources: [{{path: {few}, weight: 1}}, {{path: {many}, weight: 1}}]")
    train, test = hold_out(load_data(Source(str(tmp_path / "mixture.yaml")), 0, BadSamples()), 0.4, 0)
    trained, tested = ([sample["name"] for sample in part] for part in (train, test))
    assert len({*trained}) < len(trained)  # control: it draws some often
    assert len({*tested}) == len(tested) and not {*tested} & {*trained}
    assert any(few in name for name in tested) and any(few in name for name in trained)


def test_broken_held_out_samples_are_left_out_in_a_run_that_skips(tmp_path, base, held_out):
    (tmp_path / "other").mkdir()
    broken = conversations.write(tmp_path / "other", [conversations.sample(0), conversations.sample(1)])
    image = next((tmp_path / "other").rglob("*.png"))
    image.write_bytes(image.read_bytes()[:60])
    fields = {"eval_data_path": str(broken), "eval_metrics": METRICS, **EVERY_2, "max_steps": 2}
    with pytest.raises(ValueError, match=image.name):
        run(tmp_path / "error", base, **fields)
    assert run(tmp_path / "skip", base, **fields, on_bad_sample="skip")["eval_loss"] > 0


MISTAKES = [
    ({"eval_share": 0.5}, "need eval_strategy: steps"),
    ({"eval_strategy": "epoch"}, "eval_strategy epoch needs eval_data_path or eval_share"),
    ({"eval_share": 0.5, "eval_data_path": "x.json", **EVERY_2}, "not both"),
    ({"eval_share": 0.5, "eval_metrics": ["bleu"], **EVERY_2}, r"eval_metrics knows exact_match.*'bleu'"),
    ({"early_stopping_patience": 2}, "needs load_best_model_at_end"),
    ({"eval_share": 0.5, "metric_for_best_model": "anls", **EVERY_2}, "anls is neither loss nor one of eval_metrics"),
    ({"eval_share": 0.5, "load_best_model_at_end": True, "save_total_limit": 1, **EVERY_2}, "save_total_limit: 2"),
]


@pytest.mark.parametrize("fields, said", MISTAKES)
def test_settings_that_do_not_fit_together_are_refused(fields, said, tmp_path, base):
    with pytest.raises(ValueError, match=said):
        run(tmp_path, base, **fields)
