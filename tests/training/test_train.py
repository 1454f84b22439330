"""`omnifusion train` end to end on tiny models: what is saved, resuming, equal losses."""

import json
import shutil
from importlib import import_module

import conversations
import pytest
import tiny
import torch
from tiny import user
from training_runs import changed, command, figures, log_of, parts_changed, rerun, resume, run, weights
from transformers import AutoModelForImageTextToText, AutoProcessor

from omnifusion_hf.training import callbacks
from omnifusion_hf.training import train as train_module
from omnifusion_hf.training.stages import STAGES


WHOLE = ["pretrain", "finetune"]  # stages that leave plain folders; of the others: test_lora.py


@pytest.mark.parametrize("stage", WHOLE)
def test_run_leaves_one_folder_that_answers_and_changed_only_its_stages_parts(tmp_path, base, stage, capsys):
    summary = run(tmp_path, base, stage=stage, weight_decay=0.1)
    assert capsys.readouterr().out.startswith(f"stage {stage}, 8 samples\npart ")
    rows = {"language_model"} if stage == "pretrain" else set()  # in the table of an LLM's tokens
    assert parts_changed(base, tmp_path / "out") == set(STAGES[stage]) - {"special_token_rows"} | rows
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = tiny.prompt(processor, [user(tiny.image(0), "What colour is the sky?")])
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] == inputs["input_ids"].shape[1] + 2
    assert summary == json.loads((tmp_path / "out" / "training_summary.json").read_text())
    assert (summary["stage"], summary["steps"], summary["samples"]) == (stage, 4, 8)
    assert set(summary["trained_parameters"]) == set(STAGES[stage])
    assert (summary["learning_rate"], summary["global_batch"]) == (0.01, 2)
    assert summary["final_loss"] == log_of(tmp_path / "out")[-1]["loss"] and summary["seconds"] > 0


def test_training_learns_the_answers_in_bfloat16_with_workers_checkpointing_and_eager_attention_too(tmp_path, base):
    options = {"bf16": True, "dataloader_num_workers": 1, "activation_checkpointing": True}
    for name, changes in (("plain", {}), ("other", options | {"attn_implementation": "eager"})):
        run(tmp_path / name, base, stage="finetune", max_steps=24, save_steps=24, **changes)
        losses = [entry["loss"] for entry in log_of(tmp_path / name / "out")]
        assert len(losses) == 24 and sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_stage_1_of_a_bfloat16_llm_resumes_exactly_and_keeps_its_dtype_in_checkpoints_that_load(tmp_path, caplog):
    base = conversations.write_model(tmp_path, dtype=torch.bfloat16)
    run(tmp_path / "run", base, bf16=True)
    out, rows = tmp_path / "run/out", "model.language_model.embed_tokens.special_token_rows"
    whole, halfway, last = (weights(folder) for folder in (out, out / "checkpoint-2", out / "checkpoint-4"))
    assert rows not in whole and {tensor.dtype for tensor in whole.values()} == {torch.bfloat16}
    assert halfway[rows].dtype == halfway["model.multi_modal_projector.linear_1.weight"].dtype == torch.float32
    assert not torch.equal(halfway[rows], halfway[rows].bfloat16().float())  # rounding would lose something
    with caplog.at_level("WARNING", logger="transformers"):
        AutoModelForImageTextToText.from_pretrained(out / "checkpoint-2")
    assert "special_token_rows" not in caplog.text
    shutil.rmtree(out / "checkpoint-4")
    (out / "model.safetensors").unlink()  # with it the run would be complete
    resume(tmp_path / "run/recipe.yaml")
    assert not changed(whole, weights(out)) and not changed(last, weights(out / "checkpoint-4"))


@pytest.mark.parametrize(("stage", "cache"), [("finetune", None), ("pretrain", "features")])
def test_batch_of_four_equals_four_accumulated_batches_of_one(tmp_path, base, stage, cache):
    logs = []
    for size, steps in ((4, 1), (1, 4), (1, 1)):
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        changes = sizes | {"cache_vision_features": cache and str(tmp_path / cache)}
        run(tmp_path / f"{size}x{steps}", base, stage=stage, max_steps=2, **changes)
        logs.append(figures(tmp_path / f"{size}x{steps}/out", "loss", "grad_norm")[0])
    for whole, accumulated, one in zip(*logs):
        assert whole == pytest.approx(accumulated, rel=1e-5) and whole != pytest.approx(one, rel=1e-3)


def test_broken_sample_stops_a_run_or_is_skipped_and_counted(tmp_path, base):
    samples = [*map(conversations.sample, range(3)), conversations.sample(3, image=[3])]
    recipe = conversations.write_recipe(tmp_path, base, samples, max_steps=2)
    with pytest.raises(ValueError, match=r"sample 3 \(id s3\)"):
        rerun(recipe)
    summary = rerun(recipe, "on_bad_sample=skip")
    assert (summary["steps"], summary["skipped_samples"]) == (2, 1) and summary["final_loss"] > 0


def test_smoothed_labels_raise_a_runs_loss_a_little_and_are_refused_where_the_loss_would_be_another(tmp_path, base):
    losses = []
    for factor in (0, 0.1):
        run(tmp_path / str(factor), base, label_smoothing_factor=factor, max_steps=2)
        losses.append(log_of(tmp_path / f"{factor}/out")[0]["loss"])
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.01)  # of a random model
    narrow = conversations.write_model(tmp_path / "narrow", predicted_vocab_size=400)
    with pytest.raises(ValueError, match=r"predicts only the first 400 tokens \(predicted_vocab_size\)"):
        run(tmp_path / "infinite", narrow, label_smoothing_factor=0.1)


def test_run_without_a_step_or_from_another_model_is_an_error_and_saves_no_model(tmp_path, base, parts):
    with pytest.raises(ValueError, match="no step was made"):
        run(tmp_path, base, per_device_train_batch_size=100, dataloader_drop_last=True)
    with pytest.raises(ValueError, match="is not an OmniFusion model, its processor is a"):
        rerun(tmp_path / "recipe.yaml", f"model_name_or_path={parts / 'llm'}")
    assert not list(tmp_path.glob("out/*.safetensors")) and not (tmp_path / "out/training_summary.json").exists()


def test_missing_tools_are_said_in_one_line(tmp_path, base, monkeypatch, capsys):
    def missing():
        raise RuntimeError("it requires wandb: pip install wandb")

    monkeypatch.setattr(callbacks, "get_reporting_integration_callbacks", lambda names: [missing])
    recipe = conversations.write_recipe(tmp_path, base)
    assert command(recipe, "report_to=wandb") == 2
    assert capsys.readouterr().err == "omnifusion: error: report_to wandb: it requires wandb: pip install wandb\n"
    monkeypatch.setattr(train_module, "load_processor", lambda name: import_module("flash_attention_of_nobody"))
    monkeypatch.setattr(train_module, "check_reporting", lambda args: None)
    assert command(recipe) == 2
    assert capsys.readouterr().err == "omnifusion: error: No module named 'flash_attention_of_nobody'\n"
