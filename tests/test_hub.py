"""Model cards and uploads, against a stand-in for the Hub's HTTP API."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copytree

import pytest
import tiny
from huggingface_hub import HfApi, ModelCard
from lmms_results import write_results
from tiny import image

from omnifusion_hf import hub
from omnifusion_hf.cli import main
from omnifusion_hf.evaluation.results import read_scores
from omnifusion_hf.inference import generate_text, prompts


@pytest.fixture
def folder(model_folder, tmp_path) -> Path:
    """A saved model with its card."""
    copy = copytree(model_folder, tmp_path / "model")
    hub.render_card(copy, hub.CardFacts()).save(copy / "README.md")
    return copy


def test_a_card_counts_the_parameters_of_every_part_and_says_which_layers_are_read(model):
    rows = {row["part"]: row["parameters"] for row in hub.describe_parts(model.config)}
    adapter = sum(p.numel() for p in model.model.multi_modal_projector.parameters())
    assert rows["adapter"] == f"{adapter:,}"
    total = sum(int(count.replace(",", "")) for count in rows.values())
    assert total == sum(p.numel() for p in model.parameters())
    mix = tiny.config(("clip", "dinov2"), projector_type="summation")
    for config, read in ((mix, "all hidden states of 3 layers"), (tiny.config(), "hidden state -2 of 3 layers")):
        assert all(read in row["what"] for row in hub.describe_parts(config) if row["part"].startswith("encoder"))


def test_a_card_shows_training_and_scores_where_there_are_some(folder, tmp_path):
    (folder / "training_summary.json").write_text(json.dumps({"steps": 7, "trained_parameters": {"lm_head": 1234}}))
    scores = {"pope": {"alias": "pope", "pope_f1_score,none": 0.781_83, "pope_f1_score_stderr,none": 0.01}}
    results = write_results(tmp_path, results=scores)
    facts = hub.CardFacts(base_model=["a/b"])
    card = hub.render_card(folder, facts, repo_id="me/omni", scores=read_scores(results))
    assert "| steps | 7 |" in card.text and "| trained parameters | lm_head 1,234 |" in card.text
    assert "| pope | pope_f1_score | 0.7818 |" in card.text
    assert [result.metric_value for result in card.data.eval_results] == [0.7818]
    assert card.data.base_model == ["a/b"] and card.data.pipeline_tag == "image-text-to-text"
    assert card.data.library_name == "transformers" and card.data.model_name == "omni"
    without = (folder / "README.md").read_text(encoding="utf-8")
    assert "## Use" in without and "## Training" not in without and "## Evaluation" not in without


@pytest.fixture
def card(folder) -> Path:
    """A card that somebody wrote."""
    (folder / "README.md").write_text(WRITTEN, encoding="utf-8")
    return folder / "README.md"


def write_scores(folder: Path, **scores: float) -> str:
    results = {task: {f"{task}_score,none": value} for task, value in scores.items()}
    return str(write_results(folder, results=results))


WRITTEN = """---
license: mit
base_model: [a/vision, b/llm]
datasets: [c/data]
language: [en, ru]
my_own_key: kept
tags: [mine]
---
# What I wrote

It loads with AutoModel.from_pretrained("a/vision") and needs **care**.

## Limits

Mine.
"""


def test_a_card_that_is_there_keeps_what_was_written(folder, card):
    before = ModelCard.load(card)
    assert main(["card", str(folder)]) == 0
    assert main(["card", str(folder), "--license", "apache-2.0", "--dataset", "d/more", "e/more"]) == 0
    after, changed = ModelCard.load(card), {"license": "apache-2.0", "datasets": ["d/more", "e/more"]}
    assert after.text == before.text and after.data.my_own_key == "kept"
    assert after.data.to_dict() == before.data.to_dict() | changed


def test_scores_are_added_to_a_card_and_new_ones_replace_the_old_of_their_task(folder, card, tmp_path):
    second = {"pope": 0.75}
    for scores in ({"pope": 0.5, "gqa": 0.25}, second, second):
        assert main(["card", str(folder), "--results", write_scores(tmp_path, **scores)]) == 0
    card = ModelCard.load(card)
    measured = {result.dataset_name: result.metric_value for result in card.data.eval_results}
    assert measured == {"pope": 0.75, "gqa": 0.25}
    assert card.data.model_name == "model" and card.data.language == ["en", "ru"]
    assert card.text.count("## Evaluation") == 1 and card.text.count("| pope | pope_score | 0.75 |") == 1
    scores = card.text.partition("## Evaluation")
    assert scores[0].rstrip() + "\n\n## Limits" + scores[2].partition("## Limits")[2] == WRITTEN.split("---\n")[2]
    assert "0.5 |" not in card.text


def test_the_card_of_a_conversion_keeps_its_facts_when_scores_are_added(folder, tmp_path):
    facts = hub.CardFacts(base_model=["a/b"], language=["ru"], description="Converted.", notes=["A note."])
    hub.render_card(folder, facts).save(folder / "README.md")
    results = write_scores(tmp_path, pope=0.5)
    assert main(["card", str(folder), "--results", results]) == 0
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == ["a/b"] and card.data.language == ["ru"]
    assert "Converted." in card.text and "- A note." in card.text and "| pope | pope_score | 0.5 |" in card.text
    fresh = hub.render_card(folder, facts, scores=read_scores(Path(results)))  # control: as a new card has it
    assert card.text.strip() == fresh.text.strip()


def test_only_the_usage_code_of_this_model_gets_the_name_on_the_hub_and_a_persons_section_of_scores_stays_alone(
    folder, card, tmp_path
):
    own = 'model = AutoModelForImageTextToText.from_pretrained("/here", trust_remote_code=True)\n'
    card.write_text(f"{WRITTEN}\n### Evaluation by hand\n\nGood.\n\n{own}", encoding="utf-8")
    text = ModelCard.load(card).text
    assert main(["card", str(folder), "--repo-id", "me/omni", "--results", write_scores(tmp_path, pope=0.5)]) == 0
    after = ModelCard.load(card)
    assert after.text == text.replace("/here", "me/omni") and 'AutoModel.from_pretrained("a/vision")' in after.text
    assert len(after.data.eval_results) == 1


HOSTILE = "<script>alert(1)</script> | `a`\n## A heading"


def test_hostile_names_are_escaped_in_a_card(folder, tmp_path):
    (folder / "training_summary.json").write_text(json.dumps({HOSTILE: HOSTILE, "trained_parameters": {HOSTILE: 1}}))
    scores = read_scores(Path(write_scores(tmp_path, **{HOSTILE: 0.5})))
    facts = hub.CardFacts(description=HOSTILE, notes=[HOSTILE], base_model=[HOSTILE])
    card = hub.render_card(folder, facts, repo_id=f'me/{HOSTILE}"); import os', scores=scores)
    heading, prose = card.text.partition("```python")[0], card.text.replace("\\<script", "")
    assert heading.count("\n# ") == 1 and "## A heading" not in heading.splitlines()
    code = card.text.split("```python\n")[1].split("\n```")[0]
    assert "<script" not in prose.replace(code, "")
    compile(code, "README.md", "exec")
    assert ModelCard(str(card)).data.base_model == [HOSTILE]  # control: the metadata are YAML and hold it whole
    assert "\\<script>alert(1)\\</script> \\| \\`a\\` ## A heading" in card.text


def test_the_usage_code_of_a_card_prints_the_models_answer(folder, model, processor, tmp_path, monkeypatch, capsys):
    card = hub.render_card(folder, hub.CardFacts(), repo_id=str(folder))
    code = card.text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    image(0).save("image.png")
    exec(compile(code, "README.md", "exec"), {})
    [question] = re.findall(r'"text": "(.*?)"', code)
    inputs = prompts(processor, [[tiny.user(image(0), question)]])
    assert capsys.readouterr().out.strip() == generate_text(model, inputs, processor, 64)[0]


WRONG = [("weights.bin", "weights.bin"), ("modeling_omnifusion.py", "lacks the code"), ("README.md", "no model card")]


@pytest.mark.parametrize("file, said", WRONG)
def test_check_refuses_stray_pickles_and_a_folder_without_its_code_or_card_but_knows_what_training_leaves(
    file, said, folder
):
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "optimizer.pt").touch()
    (folder / "training_args.bin").touch()
    hub.check_folder(folder)
    (folder / file).unlink() if (folder / file).exists() else (folder / file).touch()
    with pytest.raises(ValueError, match=said):
        hub.check_folder(folder)


class StandIn(BaseHTTPRequestHandler):
    """As much of the Hub's API as creating a repository, validating a card and one commit need."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen[self.path] = body
        if self.path == "/api/validate-yaml":
            errors = [{"message": "license is not known"}] * (b"no-such-licence" in body)
            return self.reply({"errors": errors, "warnings": []}, 400 if errors else 200)
        if self.path == "/api/repos/create":
            return self.reply({"url": f"{self.server.url}/me/omni", "id": "me/omni", "name": "me/omni"})
        if self.path.endswith("/preupload/main"):
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return self.reply({"files": [file | {"shouldIgnore": False} for file in files]})
        url = f"{self.server.url}/me/omni/commit/1"
        return self.reply({"commitUrl": url, "commitOid": "1", "success": True, "hookOutput": ""})

    def do_GET(self):
        self.reply({"id": "me/omni", "sha": "0", "siblings": [], "tags": []})

    def reply(self, content: dict, status: int = 200):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """The stand-in, listening, with huggingface_hub turned to it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.seen, server.url = {}, f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.repocard.constants.ENDPOINT", server.url, raising=False)
    monkeypatch.setattr("omnifusion_hf.hub.HfApi", lambda: HfApi(endpoint=server.url, token="hf_token"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_push_uploads_every_file_after_the_checks(folder, server, capsys):
    kept = {path.name for path in folder.iterdir()}
    (folder / "training_args.bin").write_bytes(b"")
    assert main(["push", str(folder), "me/omni", "--private"]) == 0
    created = json.loads(server.seen["/api/repos/create"])
    assert created["name"] == "omni" and created["visibility"] == "private"
    commit = [json.loads(line) for line in server.seen["/api/models/me/omni/commit/main"].splitlines()]
    files = {line["value"]["path"]: line["value"] for line in commit if line["key"] == "file"}
    assert files.keys() == kept
    card = base64.b64decode(files["README.md"]["content"]).decode()
    assert 'from_pretrained("me/omni"' in card and str(folder) not in card.split("## Use")[1]


REFUSED = {  # words after the folder, a file of the folder and its new content -> what is said
    ('push me/omni";import_os', "README.md", WRITTEN): "omnifusion: error:",
    ("push me/omni", "README.md", "---\nlicense: no-such-licence\n---\n# x\n"): "license is not known",
    ("card --results other.json", "other.json", "{}"): "lmms-eval",
    ("card", "adapter_config.json", ""): "first `omnifusion merge",
    ("push me/omni", "adapter_config.json", ""): "first `omnifusion merge",
}


@pytest.mark.parametrize("given", REFUSED)
def test_an_invalid_name_card_or_result_and_lora_weights_alone_are_refused_and_nothing_is_published(
    given, folder, server, capsys, monkeypatch
):
    (command, *words), file, content = given[0].split(), *given[1:]
    monkeypatch.chdir(folder)
    (folder / file).write_text(content)
    before = (folder / "README.md").read_bytes()
    assert main([command, str(folder), *words]) == 2
    assert REFUSED[given] in capsys.readouterr().err
    assert (folder / "README.md").read_bytes() == before and not any("commit" in path for path in server.seen)
