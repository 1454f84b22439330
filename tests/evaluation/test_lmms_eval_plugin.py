"""evaluation/lmms_eval_plugin.py: by lmms-eval's command line, and document by document."""

import importlib.metadata
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import llms
import lmms
import pages
import pytest
import standins
import tiny
import torch
from PIL import Image

from omnifusion_hf.evaluation import lmms_eval_plugin as module
from omnifusion_hf.evaluation.paper_tables import BENCHMARKS
from omnifusion_hf.evaluation.results import read_models, read_sample_answers, result_files
from omnifusion_hf.inference import TINY, generate_text, prompts


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every task at batch 1 in one process, and at batch 8 in two; and a run that cannot succeed. All at once."""
    folder = tmp_path_factory.mktemp("lmms")
    lmms.write_tasks(folder)
    two = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    two += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "lmms_eval"]
    with ThreadPoolExecutor() as pool:
        eight = pool.submit(lmms.run, folder, "eight", "--batch_size", "8", launcher=two)
        one = pool.submit(lmms.run, folder, "one", "--batch_size", "1", "--device", "cpu")
        failed = pool.submit(lmms.run, folder, "failed", "--batch_size", "auto")
    for process in (one.result(), eight.result()):
        assert process.returncode == 0, process.stderr[-3000:]
    return SimpleNamespace(folder=folder, failed=failed.result())


def samples(runs, output: str, task: str | None = None) -> list:
    """The logged answers of a run, to one task or to all."""
    (file,) = result_files(runs.folder / output)
    return [answer for answer in read_sample_answers(file) if task in (None, answer.task)]


def answers(runs, output: str) -> dict[tuple[str, str], str]:
    return {(answer.task, answer.name): answer.answer for answer in samples(runs, output)}


def test_the_installed_package_has_the_entry_point_of_lmms_eval():
    (entry,) = importlib.metadata.entry_points(group="lmms_eval.models", name="omnifusion")
    manifest = entry.load()()
    assert manifest.model_id == "omnifusion" and manifest.chat_class_path.endswith("lmms_eval_plugin.OmniFusion")


def test_scores_at_batch_size_1_equal_those_at_8(runs):
    """Images, two images and none in one batch; two processes share the documents of the second run."""
    one, eight = answers(runs, "one"), answers(runs, "eight")
    assert one == eight and len(set(one.values())) > 10
    scores = [read_models([str(runs.folder / output)])[0].scores for output in ("one", "eight")]
    assert scores[0] == scores[1] and len(scores[0]) > len(standins.NAMES)


def test_the_papers_benchmarks_run_and_give_the_metrics_of_reports(runs):
    (model,) = read_models([str(runs.folder / "one")])
    given = {(standins.NAMES.get(task, task), metric) for task, metric in model.scores}
    wanted = {(task, metric) for benchmark in BENCHMARKS for task, metric, _ in benchmark.sources}
    assert wanted - given == {("mmbench_en_dev", "gpt_eval_score"), ("mmvet", "gpt_eval_score")}  # scored by GPT
    found = {(a.task, a.name): a for output in ("one", "eight") for a in samples(runs, output)}
    assert found["mmmu_val_local", "0"].question.startswith("Look at <image 1>")
    assert found["scienceqa_local", "1"].question.startswith("Context: Think.")


def test_scores_are_those_of_answers_by_hand_and_formulas_have_an_edit_distance(runs, demo):
    rows = lmms.documents()
    texts = [by_hand(*demo, row) for row in rows]
    assert [answer.answer for answer in samples(runs, "one", "bundled")] == texts
    (model,) = read_models([str(runs.folder / "one")])
    right = sum(answer == row["answer"] for answer, row in zip(texts, rows, strict=True))
    assert model.scores["bundled", "exact_match"].value == pytest.approx(right / len(rows)) and 10 <= right < len(rows)
    assert 0 < model.scores["tex", "edit_distance"].value < 0.3  # both answers are nearly right
    assert model.scores["tex", "exact_match"].value == 0


def test_a_run_records_versions_processor_and_prompts_and_images_by_task_and_document(runs, monkeypatch):
    one, eight = (json.loads((runs.folder / f"{n}/images/bundled/run.json").read_text()) for n in ("one", "eight"))
    assert one["versions"]["lmms-eval"] == importlib.metadata.version("lmms-eval")
    assert (one["batch_size"], eight["batch_size"]) == (1, 8)
    same = ("documents", "longest_prompt", "prompts_sha256", "processor_sha256", "dtype")
    assert [one[name] for name in same] == [eight[name] for name in same]
    monkeypatch.chdir(runs.folder)  # log_images was given as a relative path
    kept = [answer.images for answer in samples(runs, "one", "bundled")]
    assert [len(images) for images in kept] == [len(row["images"]) for row in lmms.documents()]
    assert kept[14][1].endswith("bundled/14-1.png")


def test_a_failed_run_ends_with_exit_code_1_and_without_results(runs):
    assert runs.failed.returncode == 1 and "--batch_size auto" in runs.failed.stderr.splitlines()[-1]
    assert not list((runs.folder / "failed").rglob("*.json"))


def test_the_page_on_evaluation_gives_its_figures(ran_page):
    run = ran_page(pages.ROOT / "docs/evaluation.md")
    (model,) = read_models([str(run.folder / "results")])
    assert model.scores["first", "exact_match"].value == pytest.approx(11 / 13)
    assert "| **tiny** | – |" in (run.folder / "report/report.md").read_text()


@pytest.fixture
def plugin(demo, monkeypatch):
    monkeypatch.setattr(module, "load", lambda *_, **__: demo)
    return module.OmniFusion(str(TINY), batch_size=3, device="cpu")


def by_hand(model, processor, row: dict) -> str:
    return generate_text(model, prompts(processor, [messages(row, "image")]), processor, max_new_tokens=48)[0]


def messages(row: dict, key: str = "url") -> list[dict]:
    images = [{"type": "image", key: str(TINY / "images" / p["path"])} for p in row["images"]]
    return [{"role": "user", "content": [*images, {"type": "text", "text": row["question"]}]}]


def ask(plugin, rows: list[dict], **settings) -> list[str]:
    """The plug-in's answers to these rows of a task."""
    plugin.task_dict = {"t": {"test": rows}}
    options = {"max_new_tokens": 48} | settings
    requests = [(row["question"], messages, options, i, "t", "test") for i, row in enumerate(rows)]
    return plugin.generate_until([SimpleNamespace(args=request) for request in requests])


def test_until_ends_an_answer_early(plugin, monkeypatch):
    lengths, generate, rows = [], plugin.model.generate, [lmms.documents()[11]]
    monkeypatch.setattr(plugin.model, "generate", lambda **kw: lengths.append(generate(**kw)) or lengths[-1])
    (whole,), (early,) = ask(plugin, rows), ask(plugin, rows, until=["^", "\\frac"])
    assert "\\frac" in whole and early == whole.partition("\\frac")[0]
    assert lengths[1].shape[1] < lengths[0].shape[1]


def test_tasks_settings_become_options_of_generate():
    greedy = module.generation_options({"temperature": 0, "top_p": 1.0, "until": ["a"], "max_new_tokens": 16})
    assert greedy == {"do_sample": False, "num_beams": 1, "max_new_tokens": 16}
    sampled = module.generation_options({"do_sample": True, "temperature": 0.2, "num_beams": 3})
    assert sampled == {"do_sample": True, "num_beams": 3, "temperature": 0.2, "max_new_tokens": 1024}
    until = ("ab", ["", "a"], None, [])
    assert [module.stop_texts({"until": each}) for each in until] == [["ab"], ["a"], [], []]


def test_another_prompt_has_another_hash(plugin, monkeypatch):
    def hashes():
        ask(plugin, lmms.documents()[:1])
        return plugin.record.of_tasks()["t"]

    first = hashes()
    assert hashes() == first
    monkeypatch.setattr(plugin.processor, "chat_template", "{{ bos_token }}" + plugin.processor.chat_template)
    assert hashes()["prompts_sha256"] != first["prompts_sha256"]


def test_an_llm_that_names_no_longest_prompt_is_measured_without_a_warning(monkeypatch, tmp_path):
    config_class, fields = llms.FAMILIES["bloom"]
    config = tiny.config(text=config_class(**fields | {"vocab_size": 405}))
    assert not hasattr(config.text_config, "max_position_embeddings")
    monkeypatch.setattr(module, "load", lambda *_, **__: (tiny.model(config), tiny.processor(config)))
    plugin = module.OmniFusion("bloom", device="cpu", log_images=str(tmp_path))
    ask(plugin, lmms.documents()[:1], max_new_tokens=2)
    assert json.loads((tmp_path / "t/run.json").read_text())["context_length"] is None


def test_logged_images_have_a_white_background(tmp_path):
    module.save_images(tmp_path, "t", 3, [Image.new("RGBA", (4, 4), (0, 0, 0, 0)), tiny.image(0)])
    assert Image.open(tmp_path / "t/3-0.png").getpixel((0, 0)) == (255, 255, 255)
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == ["3-0.png", "3-1.png"]


WRONG = [("batch_size", "auto", "--batch_size auto"), ("pretrained", "/nowhere/at/all", "/nowhere/at/all")]
WRONG += [("view_strategy", "mosaic", "mosaic"), ("log_image", "x", "log_image")]


@pytest.mark.parametrize("argument, value, message", WRONG)
def test_a_wrong_argument_ends_lmms_eval_with_a_message(argument, value, message):
    with pytest.raises(SystemExit, match=message):
        model = module.OmniFusion(**{"pretrained": str(TINY), "device": "cpu"} | {argument: value})
        ask(model, lmms.documents()[:1])


def test_unsupported_media_and_methods_are_refused(plugin):
    video = [{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}]
    plugin.task_dict = {"t": {"test": [None]}}
    with pytest.raises(SystemExit, match="video"):
        plugin.generate_until([SimpleNamespace(args=("", lambda _: video, {}, 0, "t", "test"))])
    for method in (plugin.loglikelihood, plugin.generate_until_multi_round):
        with pytest.raises(SystemExit, match="not supported"):
            method([])


def test_views_and_dtype_are_set_by_arguments(demo):
    grid = module.OmniFusion(str(TINY), device="cpu", view_strategy="grid", dtype="bfloat16")
    row = messages(lmms.documents()[0], "image")
    assert len(prompts(grid.processor, [row])["pixel_values"]) > 1 == len(prompts(demo[1], [row])["pixel_values"])
    assert grid.model.dtype == torch.bfloat16


def test_batches_have_equal_settings_and_long_prompts_first():
    requests = [(text, None, {"max_new_tokens": n}) for text, n in (("a", 1), ("bbb", 2), ("cc", 1), ("dddd", 1))]
    assert module.batches(requests, 2) == [[3, 2], [0], [1]]
