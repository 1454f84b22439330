"""Conversion of the release: exact, complete, safe; on a tiny release, and on the authors' own outputs if present."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path
from unittest.mock import Mock

import conversations
import pytest
import torch
from PIL import Image
from pixels import stored_turned
from published import same_weights, weights
from release import Marker, write_release, write_vision_tower
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny import image
from transformers import AutoModelForImageTextToText, AutoProcessor

from conversion import pickles
from conversion.convert_omnifusion import convert
from conversion.verify_conversion import converted_outputs, verify
from omnifusion_hf.model.processing_omnifusion import ESCAPE


FIXTURE = Path(__file__).parents[3] / "shared" / "airi"
needs_fixture = pytest.mark.skipif(
    not FIXTURE.is_dir(), reason="../shared/airi is absent: not compared with outputs of the authors' code"
)


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    return write_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def tower(tmp_path_factory) -> Path:
    return write_vision_tower(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def converted(release, tower, tmp_path_factory) -> Path:
    return convert(str(release), str(tower), str(tmp_path_factory.mktemp("converted") / "model"))


def test_the_converted_folder_computes_what_the_release_does(release, tower, converted, tmp_path):
    images = [tmp_path / f"{number}.png" for number in range(3)]
    for number, size in enumerate([(40, 61), (90, 33), (7, 5)]):
        image(number, size).save(images[number])
    rows = verify(release, tower, converted, images)
    stages = {"pixels", "visual tokens", "embeddings", "last hidden state", "logits", "greedy ids", "beam-3 ids"}
    assert {row.stage for row in rows} == stages and all(row.ok for row in rows), rows
    broken = shutil.copytree(converted, tmp_path / "broken")  # control: a wrong weight
    name = "model.multi_modal_projector.transformer_layer.self_attn.q_proj.weight"
    file = broken / json.loads((broken / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(file)
    save_file(tensors | {name: tensors[name].flip(0).contiguous()}, file, metadata={"format": "pt"})
    ok = {row.stage: row.ok for row in verify(release, tower, broken, images[:1])}
    assert ok["pixels"] and not ok["visual tokens"]


def test_images_that_a_viewer_turns_are_compared_as_shown_and_named(release, tower, converted, tmp_path, capsys):
    plain, turned = tmp_path / "plain.png", tmp_path / "turned.png"
    image(0, (40, 61)).save(plain)
    turned.write_bytes(stored_turned(image(0, (40, 61)), 6))
    assert all(row.ok for row in verify(release, tower, converted, [plain, turned]))
    printed = capsys.readouterr().out
    assert printed == f"{plain}: as stored\n{turned}: as a viewer shows it; the release uses it as stored\n"


@pytest.mark.parametrize("kind", ["clip", "bin"])
def test_a_vision_tower_inside_clip_or_as_bin_gives_the_same_model(release, converted, kind, tmp_path):
    tower = write_vision_tower(tmp_path / kind, kind)
    assert same_weights(converted, convert(str(release), str(tower), str(tmp_path / "model")))
    wide = convert(str(release), str(tower), str(tmp_path / "wide"), torch.float32)  # control: in another dtype
    assert {tensor.dtype for tensor in weights(wide).values()} == {torch.float32}
    assert json.loads((wide / "config.json").read_text())["dtype"] == "float32"


def llm_shard(release: Path) -> Path:
    return sorted((release / "OmniMistral-v1_1/tuned-model").glob("*.safetensors"))[0]


def edit_llm(**change):
    """Changes tensors of the first LLM shard; None removes one."""

    def edit(release: Path, tower: Path):
        tensors = load_file(llm_shard(release)) | {name.replace("__", "."): tensor for name, tensor in change.items()}
        kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        save_file(kept, llm_shard(release), metadata={"format": "pt"})

    return edit


def widen(release: Path, tower: Path):
    config = json.loads((tower / "config.json").read_text())
    (tower / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))


ROOT = "OmniMistral-v1_1"
MISTAKES = {
    "unknown tensor `bonus`": edit_llm(bonus=torch.zeros(1)),
    "`lm_head.weight`": edit_llm(lm_head__weight=None),
    "`lm_head.weight` has shape": edit_llm(lm_head__weight=torch.zeros(340, 31)),
    "tokenizer.model is missing": lambda release, tower: (release / ROOT / "tokenizer/tokenizer.model").unlink(),
    "half a download": lambda release, tower: llm_shard(release).unlink(),
    "is damaged": lambda release, tower: llm_shard(release).write_bytes(b"\0" * 20),
    "holds no weights": lambda release, tower: [p.unlink() for p in (release / ROOT / "tuned-model").glob("model*")],
    "projection.pt was not read": lambda release, tower: (release / ROOT / "projection.pt").write_bytes(b"nothing"),
    "expected vectors": lambda release, tower: torch.save(
        {"SOI": torch.zeros(32)}, release / ROOT / "special_embeddings.pt"
    ),
    "vision tower's width is 64, but projection.pt was made for 32": widen,
    "neither a folder nor a Hub id": lambda release, tower: shutil.rmtree(release),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_an_incomplete_or_damaged_source_is_one_line_and_leaves_nothing(release, tower, tmp_path, message, refused):
    sources = shutil.copytree(release, tmp_path / "release"), shutil.copytree(tower, tmp_path / "tower")
    MISTAKES[message](*sources)
    source, vision = sources
    arguments = ["--source", source, "--vision", vision, "--output", tmp_path / "model"]
    assert message in refused("convert", "v1.1", *arguments)
    assert not [path for path in tmp_path.iterdir() if path not in sources]


def test_an_existing_folder_is_not_replaced_and_a_full_disk_leaves_none(release, tower, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="exists and is not replaced"):
        convert(str(release), str(tower), str(tmp_path))
    full_disk = Mock(side_effect=SafetensorError("No space left on device"))  # what save_file raises
    monkeypatch.setattr("conversion.weights.save_file", full_disk)
    with pytest.raises(OSError, match="was not written: No space left"):
        convert(str(release), str(tower), str(tmp_path / "model"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("disguise", ["builtins.open", "models.open", "torch.nn.modules.linear.open"])
def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path, disguise):
    """Also under names that look like torch's own modules or the release's."""
    file, marker = tmp_path / "projection.pt", tmp_path / "marker"
    torch.save({"module": Marker(marker)}, file)
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        named = "c{}\n{}\n".format(*disguise.rsplit(".", 1)).encode()
        for name, content in entries.items():
            archive.writestr(name, content.replace(b"cio\nopen\n", named) if name.endswith("data.pkl") else content)
    with pytest.raises(ValueError, match="was not read"):
        pickles.read(file, pickles.RELEASE_CLASSES)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Marker(marker))).close()  # control: naive loading runs it
    assert marker.exists()


@pytest.fixture(scope="module")
def golden_model(tmp_path_factory):
    """The fixture, converted, as a user loads it, and its folder."""
    folder = str(tmp_path_factory.mktemp("golden") / "model")
    convert(str(FIXTURE / "fixture"), str(FIXTURE / "fixture/vision_tower"), folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(folder)


def golden(part: str):
    """What the authors' code gave."""
    return json.loads((FIXTURE / "fixture/golden.json").read_text(encoding="utf-8"))[part]


def golden_cases() -> list:
    """Name and description of each case that the authors' code was run on."""
    if not FIXTURE.is_dir():
        return []
    kinds = [("case", case) for case in golden("cases")] + [("text", case) for case in golden("text_only")]
    return [pytest.param(name := f"{kind}{case['case']}", case, id=name) for kind, case in kinds]


@needs_fixture
@pytest.mark.parametrize("name, case", golden_cases())
def test_outputs_equal_those_of_the_authors_code(golden_model, name, case):
    expected = load_file(FIXTURE / "fixture/golden.safetensors")
    image = Image.open(FIXTURE / f"fixture/images/{case['image']}.png") if "image" in case else None
    found = converted_outputs(*golden_model, image, case["question"])
    close(found["embeddings"], expected[f"{name}.inputs_embeds"], 2e-5)
    close(found["last hidden state"], expected[f"{name}.last_hidden_state"], 1e-4)
    close(found["logits"][:, expected["logits_columns"].long()], expected[f"{name}.logits_cols"], 1e-4)
    close(found["logits"][-1, :32000], expected[f"{name}.logits_last"], 1e-4)
    if "image" in case:
        close(found["pixels"], expected[f"image.{case['image']}.pixel_values"], 2e-5)
        close(found["visual tokens"], expected[f"image.{case['image']}.visual_tokens"], 2e-5)
    assert found["beam-3 ids"].tolist() == case["beam_readme_ids"]
    if "greedy_readme_ids" in case:
        assert found["greedy ids"].tolist() == case["greedy_readme_ids"]


def close(found: torch.Tensor, expected: torch.Tensor, atol: float):
    torch.testing.assert_close(found, expected.reshape(found.shape), atol=atol, rtol=0)


@needs_fixture
def test_the_training_loss_in_the_format_of_the_release_equals_the_authors(golden_model):
    model, processor = golden_model
    expected = golden("train")
    images = str(FIXTURE / "fixture/images")
    samples = conversations.load(FIXTURE / "fixture/train.json", image_folder=images, conversation_format="v1.1")
    samples = [samples[index] for index in range(len(samples))]
    batch = conversations.collate(processor, samples, append_eos=False)
    assert int((batch["labels"] != -100).sum()) == expected["n_loss_tokens"]
    with torch.no_grad():
        assert model(**batch).loss.item() == pytest.approx(expected["loss"], abs=1e-5)
        with_eos = model(**conversations.collate(processor, samples)).loss.item()
        assert with_eos != pytest.approx(expected["loss"], abs=0.01)


@needs_fixture
def test_pixels_of_grey_and_tiny_images_and_token_ids_equal_the_authors(golden_model):
    _, processor = golden_model
    pixels, raw = load_file(FIXTURE / "fixture/golden.safetensors"), {"do_rescale": False, "do_normalize": False}
    for name in ("gray_L", "tiny_7x5"):
        found = processor.image_processor(str(FIXTURE / f"fixture/images/{name}.png"), **raw)["pixel_values"][0]
        assert (found == pixels[f"extra.{name}.pixels_uint8"].numpy()).all()
    for sample in golden("tokenization"):
        typed = sample["text"].replace("<image>", f"<{ESCAPE}image>")  # as the chat template writes what a user typed
        assert processor.tokenizer.encode(typed) == sample["ids"], sample["text"]
