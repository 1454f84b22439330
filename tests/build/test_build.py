"""`omnifusion build`: parts by preset, folder or Hub id to a folder that trains as it is; mistakes are told early."""

import json
from unittest.mock import Mock

import llms
import pytest
import tiny
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from omnifusion_hf import OmniFusionForConditionalGeneration
from omnifusion_hf.build import presets
from omnifusion_hf.build.build import hub_ids
from omnifusion_hf.cli import main


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def command(parts, out, *options, text="llm", vision=("clip",)) -> list[str]:
    encoders = [word for name in vision for word in ("--vision", str(parts / name))]
    return ["build", *encoders, "--text", str(parts / text), *options, "--output", str(out)]


def build(parts, out, *options, **given) -> dict:
    """The built configuration."""
    assert main(command(parts, out, *options, **given)) == 0
    return json.loads((out / "config.json").read_text())


def test_a_build_is_the_same_each_time(parts, tmp_path):
    """Its untrained weights are seeded, whatever was drawn before."""
    for name in ("one", "other"):
        torch.rand(1)
        build(parts, tmp_path / name)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "other"))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    torch.manual_seed(1)  # control: another seed gives another adapter
    another = OmniFusionForConditionalGeneration.from_vision_text_pretrained([parts / "clip"], parts / "llm")
    assert not torch.equal(another.state_dict()[name := "model.multi_modal_projector.linear_1.weight"], one[name])


def test_what_is_built_is_said_in_numbers_with_the_command_that_trains_it(parts, tmp_path, capsys):
    out = tmp_path / "made" / "model"
    build(parts, out, "--projector", "summation", "--views", "grid", vision=("clip", "dinov2"))
    printed = capsys.readouterr().out
    assert "clip_vision_model 32 px + dinov2 32 px -> summation -> mistral" in printed
    assert "16 tokens per view; an image of 1920 x 1080: 5 views x 16 + 2 marks = 82 tokens" in printed
    said = f"omnifusion train pretrain model_name_or_path={out} data_path=DATA.json image_folder=IMAGES"
    assert f"{said}\n" in printed
    assert AutoProcessor.from_pretrained(out).image_processor.view_strategy == "grid"


def test_a_chat_tuned_llm_keeps_its_template_and_stops_at_its_own_mark(parts, tmp_path):
    chat = llms.save(tmp_path / "chat", "llama", chat_template=llms.CHATML.replace("<|im_end|>", "<unk>"))
    for kind, ends in (("own", [2, 0]), ("omnifusion", [2])):  # <unk> is what the template ends turns with
        folder = tmp_path / kind
        build(parts, folder, "--chat-template", kind, text=chat)
        assert ("You help." in (folder / "chat_template.jinja").read_text()) == (kind == "own")
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == ends


BEGINS_WITH_A_MARK = """
{%- for message in messages %}<|im_start|>{{ message['role'] }}{% if message['role'] == 'assistant' %}<s>{% endif %}
{{ message['content'] }}<unk>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant{% endif %}"""


def test_a_mark_that_begins_every_answer_does_not_end_it(parts, tmp_path):
    text = llms.save(tmp_path / "chat", "llama", chat_template=BEGINS_WITH_A_MARK)
    build(parts, tmp_path / "out", "--chat-template", "own", text=text)
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"] == [2, 0]


NO_END = "{% for m in messages %}{{ m.content }} {% endfor %}"  # nothing ends an answer
RAISES = "{% if messages[0].role != 'system' %}{{ raise_exception('a system message first') }}{% endif %}"


@pytest.mark.parametrize("template", [NO_END, RAISES])
def test_a_template_that_cannot_be_trained_is_refused(template, parts, tmp_path, refused):
    text = llms.save(tmp_path / "chat", "llama", chat_template=template)
    said = refused(*command(parts, tmp_path / "out", "--chat-template", "own", text=text))
    assert "use --chat-template omnifusion" in said and not (tmp_path / "out").exists()


def test_a_preset_sets_layer_size_and_fit_and_options_win(parts, tmp_path, monkeypatch):
    preset = presets.EncoderPreset("nobody/nothing", 32, 16, 32, layer=-3, image_fit="pad")
    monkeypatch.setitem(presets.ENCODERS, "small", preset)
    encoder = f"small={parts / 'clip'}"
    for options, expected in (([], ([-3], "pad")), (["--layer", "-1", "--image-fit", "squash"], ([-1], "squash"))):
        out = tmp_path / str(len(options))
        config = build(parts, out, "--vision", encoder, *options, vision=())
        processor = json.loads((out / "processor_config.json").read_text())
        assert (config["vision_feature_layer"], processor["image_processor"]["image_fit"]) == expected


def test_settings_of_the_adapter_become_fields_of_the_configuration(parts, tmp_path):
    options = ["--projector", "attention", "--heads", "2", "--dropout", "0.25", "--queries", "5"]
    config = build(parts, tmp_path / "out", *options)
    names = ("projector_num_attention_heads", "projector_dropout", "projector_num_queries")
    assert [config[name] for name in names] == [2, 0.25, 5]
    assert config["projector_intermediate_size"] == 2048  # control: the default of what was not given
    wide = build(parts, tmp_path / "wide", "--projector", "transformer", "--intermediate-size", "48")
    assert wide["projector_intermediate_size"] == 48


@pytest.mark.parametrize("context", [82, 4096])
def test_an_image_that_does_not_fit_the_context_is_said_with_the_cure(parts, tmp_path, capsys, context):
    config = tiny.text_config(vocab_size=400)
    config.max_position_embeddings = context
    text = llms.save_config(tmp_path / "llm", config)
    build(parts, tmp_path / "out", "--views", "grid", text=text)
    printed = capsys.readouterr().out
    said = "warning: this does not fit: 82 tokens and a question, in a context of 82; use view_strategy whole, "
    assert (said in printed) is (context == 82) and ("warning" in printed) is (context == 82)


def test_a_card_names_the_hub_ids_of_the_parts_also_of_a_model_trained_from_them(parts, tmp_path, monkeypatch):
    preset = presets.EncoderPreset("nobody/nothing", 32, 16, 32)
    monkeypatch.setitem(presets.ENCODERS, "small", preset)
    for vision, known in (([], None), (["--vision", f"small={parts / 'clip'}"], ["nobody/nothing"])):
        built, trained = tmp_path / f"built-{known}", tmp_path / f"trained-{known}"
        build(parts, built, *vision, vision=() if vision else ("clip",))
        AutoModelForImageTextToText.from_pretrained(built).save_pretrained(trained)  # as training and merging do
        AutoProcessor.from_pretrained(built).save_pretrained(trained)
        assert main(["card", str(trained)]) == 0
        assert ModelCard.load(trained / "README.md").data.base_model == known


def test_folders_have_no_hub_id_but_a_file_of_a_repository_has(parts):
    encoders = [(None, str(parts / "clip")), (presets.ENCODERS["dinov2-l"], str(parts / "dinov2")), (None, "a/vision")]
    assert hub_ids(encoders, "b/llm/q4.gguf") == ["facebook/dinov2-large", "a/vision", "b/llm"]
    assert hub_ids(encoders[:1], str(parts / "llm")) == []


def test_a_model_of_the_tables_is_built_from_local_parts(parts, tmp_path, monkeypatch):
    for name, source in (("clip-vit-l-336", "clip"), ("dinov2-l", "dinov2")):
        small = presets.EncoderPreset(str(parts / source), 32, 16, 32, follows_grid=source == "dinov2")
        monkeypatch.setitem(presets.ENCODERS, name, small)
    monkeypatch.setitem(presets.TEXTS, "mistral-7b", str(parts / "llm"))
    assert main(["build", "--preset", "clip-dinov2-attention", "-o", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["projector_type"] == "attention" and len(config["vision_config"]["encoder_configs"]) == 2


MISTAKES = {
    "--vision internvit-6b-448 --text {llm}": "omnifusion convert intern-vit --source OpenGV",
    "--vision {clip}": "--vision (once per encoder) and --text",
    "--vision {clip}/absent --text {llm}": "cannot load `{clip}/absent`",
    "--vision {clip} --text someone/model": "cannot load `someone/model`",
    "--vision blip={clip} --text {llm}": "`blip` in blip={clip} is not a preset",
    "--vision clip-vit-l-336={clip} --text {llm}": "should give 576 tokens of width 1024",
    "--vision {clip} --text {llm} --layer -1 --layer -2": "--layer is given 2 times for 1",
    "--vision {clip} --text {llm} --queries 4": "the adapter mlp has no --queries; it has no settings",
    "--vision {clip} --text {llm} --projector attention --intermediate-size 4": "it has --heads, --dropout, --queries",
    "--vision {clip} --text {llm} --projector transformer --heads 5": "must be a divisor of 32",
    "--vision {clip} --text {llm} --image-size 30": "not a multiple of its patch size",
    "--vision {clip} --text {clip}": "has no tokenizer that loads; give the folder or Hub id of an LLM",
    "--vision {clip} --text {llm} --chat-template own": "no chat template of its own",
    "--preset v2": "--preset v2 is unknown",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes_are_told_in_one_line_and_leave_nothing(arguments, parts, tmp_path, refused):
    fill = {"clip": parts / "clip", "llm": parts / "llm"}
    said = refused("build", *arguments.format(**fill).split(), "-o", tmp_path / "out")
    assert MISTAKES[arguments].format(**fill) in said
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_not_replaced_and_a_build_that_breaks_off_leaves_nothing(
    parts, tmp_path, monkeypatch, refused
):
    (tmp_path / "kept.txt").write_text("mine")
    assert "exists and is not replaced" in refused(*command(parts, tmp_path))
    full_disk = Mock(side_effect=OSError("No space left on device"))
    monkeypatch.setattr("omnifusion_hf.OmniFusionProcessor.save_pretrained", full_disk)
    assert "No space left on device" in refused(*command(parts, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
