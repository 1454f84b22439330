"""vLLM gives the tokens that `generate()` gives, for every way in which images reach the LLM."""

import json
from pathlib import Path

import llms
import pages
import pytest
import served
import tiny
from PIL import Image
from transformers import AutoTokenizer

import omnifusion_hf
from omnifusion_hf.extensions import import_extensions


DEMO = Path(omnifusion_hf.__file__).parent / "tiny"


def family(name: str, **changes):
    """An LLM of that family, with room for the special tokens and heads that vLLM has kernels for."""
    config_class, fields = llms.FAMILIES[name]
    return config_class(**fields | {"vocab_size": 512, "head_dim": 32, "hidden_size": 128} | changes)


MIX = "concatenation, grid"
TWO = {"encoders": ("clip", "dinov2")}
MODELS = {
    "mlp": {},
    "mlp, grid": {"view_strategy": "grid"},
    "mlp, Swin": {"encoders": ("swin",)},
    "CLS kept, tied head": {"vision_feature_select_strategy": "full", "text": served.llm(tie_word_embeddings=True)},
    "transformer": {"encoders": ("clip", "siglip"), "projector_type": "transformer", "predicted_vocab_size": 400},
    MIX: {**TWO, "projector_type": "concatenation", "view_strategy": "grid"},
    "summation, two sizes": {**TWO, "projector_type": "summation", "image_sizes": [32, 48]},
    "attention": {"encoders": ("siglip", "internvl"), "projector_type": "attention", "projector_num_queries": 8},
    "gemma2, capped logits": {"text": family("gemma2")},
    "cohere, multiplied logits": {"text": family("cohere")},
    "granite, divided logits": {"text": family("granite")},
}


def tokens(found: list[dict]) -> list[tuple]:
    return [(asked["prompt"], asked["answer"]) for asked in found]


def logprobs(found: list[dict]) -> list[float]:
    return [value for asked in found for value in asked["logprobs"]]


@pytest.fixture(scope="module")
def asked() -> list[list[dict]]:
    return served.conversations()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: served.save(tmp_path_factory.mktemp("model"), **made) for name, made in MODELS.items()}


@pytest.fixture(scope="module")
def expected(folders, asked) -> dict[str, list[dict]]:
    return {name: served.by_transformers(folder, asked) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def given(folders, asked) -> dict[str, list[dict]]:
    """By one process of vLLM, which takes its time to start."""
    return dict(zip(folders, served.by_vllm([served.job(folder, asked) for folder in folders.values()])))


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_transformers(name, expected, given):
    """No image, one, two, unusual sizes, several turns; with the same probabilities."""
    assert tokens(given[name]) == tokens(expected[name])
    assert logprobs(given[name]) == pytest.approx(logprobs(expected[name]), abs=1e-3)
    # Control: other images give other answers, and the answers are no certainties.
    assert len({tuple(found["answer"]) for found in expected[name]}) >= 3 and min(logprobs(expected[name])) < -0.01


def test_special_tokens_are_never_generated(asked, tmp_path):
    folder = served.save(tmp_path, change=loud_special_tokens)
    plain = {"hf_overrides": {"architectures": ["TransformersMultiModalForCausalLM"]}}
    given, control = served.by_vllm([served.job(folder, asked), served.job(folder, asked, **plain)])
    assert tokens(given) == tokens(served.by_transformers(folder, asked))
    special = set(tiny.config().special_token_ids)
    assert not special & {token for found in given for token in found["answer"]}
    # Control: the class that vLLM has for models which it does not know generates them.
    assert special & {token for found in control for token in found["answer"]}


def loud_special_tokens(model):
    """Turns `<image>` and `<bot>` into likely tokens wherever the LLM is."""
    head = model.lm_head.weight
    loud = 9 * head[5:300].sum(0)
    head[model.config.image_token_id], head[model.config.bot_token_id] = loud, -loud


def test_the_strategy_of_views_may_be_set_for_the_engine(folders, expected, asked):
    folder = folders["mlp"]
    [given] = served.by_vllm([served.job(folder, asked, mm_processor_kwargs={"view_strategy": "grid"})])
    assert tokens(given) == tokens(served.by_transformers(folder, asked, view_strategy="grid"))
    assert tokens(given) != tokens(expected["mlp"])


def test_an_adapter_in_a_file_of_its_user(asked, tmp_path, monkeypatch):
    """The pixel shuffle of docs/extending.md."""
    page = pages.blocks((pages.ROOT / "docs/extending.md").read_text(encoding="utf-8"))
    file = tmp_path / "pixel_shuffle.py"
    file.write_text(next(block.code for block in page if block.file == file.name))
    monkeypatch.setenv("OMNIFUSION_EXTENSIONS", str(file))
    import_extensions()
    folder = served.save(tmp_path / "model", projector_type="pixel_shuffle")
    [given] = served.by_vllm([served.job(folder, asked)])
    assert tokens(given) == tokens(expected := served.by_transformers(folder, asked))
    assert len({tuple(found["answer"]) for found in expected}) >= 3  # control: it sees


# On a CPU, vLLM 0.30 makes the buffers between stages of a pipeline only where it compiles.
@pytest.mark.parametrize(("parallel", "compiled"), [("tensor_parallel_size", False), ("pipeline_parallel_size", True)])
def test_two_devices_give_the_tokens_of_one(parallel, compiled, folders, expected, asked):
    job = served.job(folders[MIX], asked, enforce_eager=not compiled, **{parallel: 2})
    compiling = {"TORCHDYNAMO_DISABLE": "0"} if compiled else {}
    [given] = served.by_vllm([job], VLLM_CPU_OMP_THREADS_BIND="0|1", **compiling)
    assert tokens(given) == tokens(expected[MIX])


def test_a_folder_of_remote_code_is_enough(folders, expected, asked):
    """Without the plug-in, with `--trust-remote-code`."""
    job = served.job(folders[MIX], asked, trust_remote_code=True)
    [given] = served.by_vllm([job], VLLM_PLUGINS="none")
    assert tokens(given) == tokens(expected[MIX])
    with pytest.raises(AssertionError, match="trust_remote_code|trust-remote-code"):  # control
        served.by_vllm([served.job(folders["mlp"], asked)], VLLM_PLUGINS="none")


@pytest.fixture(scope="module")
def questions() -> list[dict]:
    """Of the bundled model's examples; formulas are longer than what is asked for here."""
    questions = json.loads((DEMO / "images/questions.json").read_text())
    return [question for question in questions if "formula" not in question["image"]]


def test_the_demo_model_answers_rightly_in_any_dtype(questions):
    asked = [[tiny.user(Image.open(DEMO / "images" / row["image"]), row["question"])] for row in questions]
    jobs = [served.job(DEMO, asked, dtype=dtype) for dtype in ("float32", "bfloat16")]
    exact, rounded = served.by_vllm(jobs)
    assert tokens(exact) == tokens(served.by_transformers(DEMO, asked))
    assert logprobs(exact) != logprobs(rounded)
    decode = AutoTokenizer.from_pretrained(DEMO).decode
    for given in (exact, rounded):
        answers = [decode(found["answer"], skip_special_tokens=True).strip() for found in given]
        assert answers == [row["truth"] for row in questions]


def test_a_folder_may_be_served_in_another_dtype_than_it_was_saved_in(folders, expected, asked):
    """Two of the encoder families; answers of random models are too close a call to be kept in bfloat16."""
    [given] = served.by_vllm([served.job(folders[MIX], asked, dtype="bfloat16")])
    for found, exact in zip(given, expected[MIX]):
        assert found["prompt"] == exact["prompt"]
        assert found["logprobs"][0] == pytest.approx(exact["logprobs"][0], abs=0.1)
