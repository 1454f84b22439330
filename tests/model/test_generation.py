"""generate(): every decoding strategy gives what greedy decoding of single samples gives, where it must."""

from functools import partial

import peft
import pytest
import tiny
import torch
import transformers
from packaging.version import Version
from tiny import answers
from transformers import GenerationConfig, MistralForCausalLM
from transformers.models.auto import modeling_auto

from omnifusion_hf import OmniFusionForConditionalGeneration
from omnifusion_hf.model.generation_omnifusion import SuppressSpecialTokens


NEW_TOKENS = 6


@pytest.fixture(scope="module")
def conversations() -> list[list[dict]]:
    """Two, one, and no images; of different shapes, in different places."""
    a, b, c = tiny.image(0), tiny.image(1, (20, 90)), tiny.image(2, (70, 30))
    two = [tiny.user(a, "Look at this, and then at", b, "what differs?")]
    one = [tiny.user("Hello"), tiny.assistant("Hi!"), tiny.user(c, "What?")]
    return [two, one, [tiny.user("Only words here")]]


@pytest.fixture(scope="module")
def singles(model, grid_processor, conversations) -> torch.Tensor:
    return torch.cat([answers(model, tiny.prompt(grid_processor, conversation)) for conversation in conversations])


@torch.no_grad()
def test_greedy_equals_recomputing_every_step(model, grid_processor, conversations, singles):
    """Without cache or generate(): the most likely token that is not special, again and again."""
    inputs = dict(tiny.prompt(grid_processor, conversations[0]))
    for _ in range(NEW_TOKENS):
        logits = model(**inputs, use_cache=False).logits[0, -1]
        logits[[*model.config.special_token_ids, model.generation_config.eos_token_id]] = -torch.inf
        inputs["input_ids"] = torch.cat([inputs["input_ids"], logits.argmax().view(1, 1)], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    assert inputs["input_ids"][0, -NEW_TOKENS:].tolist() == singles[0].tolist()


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_a_prefill_in_chunks_reads_each_visual_token_once(options, model, grid_processor, conversations):
    """Or is refused: transformers before 5.23 does not cut images into chunks."""
    for conversation in conversations:
        inputs = tiny.prompt(grid_processor, conversation)
        whole = answers(model, inputs, **options)
        try:
            found = answers(model, inputs, prefill_chunk_size=8, **options)
        except ValueError as error:
            assert "do not match" in str(error) and Version(transformers.__version__) < Version("5.23")
        else:
            assert found.tolist() == whole.tolist()


@pytest.mark.parametrize("draft", ["text-only model", "prompt lookup", "the model itself"])
def test_assisted_decoding_equals_greedy(draft, model, grid_processor, conversations, singles):
    torch.manual_seed(0)
    options = {"assistant_model": model} if draft == "the model itself" else {"prompt_lookup_num_tokens": 3}
    if draft == "text-only model":
        if Version(transformers.__version__) < Version("5.18"):
            pytest.skip("transformers before 5.18 gives a draft model the images too; a text-only one refuses them")
        options = {"assistant_model": MistralForCausalLM(model.config.text_config).eval()}
    for conversation, expected in zip(conversations, singles):
        inputs = tiny.prompt(grid_processor, conversation)
        assert answers(model, inputs, **options)[0].tolist() == expected.tolist()


# `expanded`: samples that are repeated after their images were encoded
GREEDY = {f"{kind} cache": {"cache_implementation": kind} for kind in ("dynamic", "static", "quantized")}
GREEDY["quantized cache"] |= {"cache_config": {"backend": "quanto", "nbits": 8, "residual_length": 256}}
GREEDY |= {"no cache": {"use_cache": False}, "expanded": {"do_sample": True, "top_k": 1, "num_return_sequences": 2}}


@pytest.mark.parametrize("kind", GREEDY)
def test_a_left_padded_batch_equals_singles(kind, model, grid_processor, conversations, singles):
    options = GREEDY[kind] | {"disable_compile": True}
    if kind == "quantized cache":
        pytest.importorskip("optimum.quanto", reason="the quantised cache needs optimum-quanto: it is not installed")
    expected = singles.repeat_interleave(options.get("num_return_sequences", 1), 0).tolist()
    assert answers(model, tiny.prompt(grid_processor, *conversations), **options).tolist() == expected
    right = tiny.prompt(grid_processor, *conversations, processor_kwargs={"padding_side": "right"})  # control
    assert answers(model, right, **options).tolist() != expected


@torch.no_grad()
def test_features_computed_before_give_the_same_answers(model, grid_processor, conversations, singles):
    inputs = tiny.prompt(grid_processor, *conversations)
    pixels = {"pixel_values": inputs.pop("pixel_values"), "image_view_index": inputs.pop("image_view_index")}
    for options in ({}, {"num_beams": 3}):
        features = {"image": model.get_image_features(**pixels)}
        given = answers(model, inputs, mm_encoder_outputs=features, **options)
        assert given.tolist() == answers(model, {**inputs, **pixels}, **options).tolist()
    with pytest.raises(ValueError, match="pass only one"):
        model(**inputs, **pixels, mm_encoder_outputs={"image": model.get_image_features(**pixels)})


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_embeddings_for_ids_give_the_same_answers(options, model, grid_processor, conversations):
    """With images beside them, in them, and in them with their ids."""
    inputs = dict(tiny.prompt(grid_processor, *conversations))
    expected = answers(model, inputs, **options).tolist()
    ids = inputs.pop("input_ids")
    embeds = model.get_input_embeddings()(ids)
    ask = partial(model.generate, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, **options)
    assert ask(**inputs, inputs_embeds=embeds).tolist() == expected
    pixels = {name: inputs.pop(name) for name in ("pixel_values", "image_view_index")}
    tokens = torch.cat(model.get_image_features(**pixels).pooler_output)
    merged = embeds.masked_scatter((ids == model.config.image_token_id).unsqueeze(-1), tokens)
    assert ask(**inputs, inputs_embeds=merged).tolist() == expected
    assert ask(**inputs, input_ids=ids, inputs_embeds=merged)[:, ids.shape[1] :].tolist() == expected


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's
def test_prompt_tuning_by_peft_answers_about_an_image(processor):
    tuned = peft.get_peft_model(tiny.model(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    asked = [tiny.prompt(processor, [tiny.user(tiny.image(seed), "What?")]) for seed in (0, 0, 3)]
    same, again, other = (tuned.generate(**inputs, max_new_tokens=NEW_TOKENS).tolist() for inputs in asked)
    assert same == again != other  # control: the image matters


@pytest.fixture
def tower_calls(model):
    """The number of views of each call of the vision tower."""
    calls = []
    hook = model.model.vision_tower.register_forward_pre_hook(lambda _, arguments: calls.append(len(arguments[0])))
    yield calls
    hook.remove()


@pytest.mark.parametrize("new", [[], [tiny.image(5, (30, 80))]], ids=["text", "new image"])
@pytest.mark.parametrize("resend", [False, True], ids=["new images only", "all images again"])
def test_a_kept_cache_is_not_encoded_again(new, resend, model, grid_processor, tower_calls):
    def second_turn(image, is_sent: bool = True):
        """The cache after turn 1, and the ids and images of a turn 2 that goes on from exactly its ids."""
        first = tiny.prompt(grid_processor, [tiny.user(image, "What?")])
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "return_dict_in_generate": True}
        past = model.generate(**first, **options)
        text, images = f"<user>{'<image>' * len(new)}And this?<bot>", [image] * is_sent + new
        turn = grid_processor(text=text, images=new, return_tensors="pt")
        pixels = grid_processor.image_processor(images, return_tensors="pt") if images else {}
        inputs = {"input_ids": torch.cat([past.sequences, turn.input_ids], dim=1), **pixels}
        return len(first.pixel_values), tiny.cache_of(past), inputs

    image, other = tiny.image(4, (90, 30)), tiny.image(6, (90, 30))
    kept, cache, inputs = second_turn(image, resend)
    *_, whole = second_turn(image)
    tower_calls.clear()
    recomputed = answers(model, whole).tolist()
    views_of_all = sum(tower_calls)
    tower_calls.clear()
    assert answers(model, inputs, **tiny.cached(cache)).tolist() == recomputed
    assert sum(tower_calls) == views_of_all - kept
    if not resend:  # the new ids alone, as the mask says
        _, cache, inputs = second_turn(image, False)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["input_ids"] = inputs["input_ids"][:, cache.get_seq_length() :]
        assert answers(model, inputs, **tiny.cached(cache)).tolist() == recomputed
    *_, of_other = second_turn(other)
    assert answers(model, of_other).tolist() != recomputed


def test_batches_drop_the_right_images(model, grid_processor):
    """Two samples with one and two images in turn 1; all are passed again with one new image for each."""
    a, b, c, d, e = (tiny.image(seed, (30 + 20 * seed, 60)) for seed in range(5))
    text, options = "<image><user>What?<bot>", {"padding": True, "return_tensors": "pt"}
    first = grid_processor(text=[text, "<image>" + text], images=[[a], [b, c]], **options)
    past = model.generate(**first, max_new_tokens=2, min_new_tokens=2, do_sample=False, return_dict_in_generate=True)
    turn = grid_processor(text=["<user><image>And this?<bot>"] * 2, images=[[d], [e]], **options)
    assert turn.attention_mask.all()
    masks = [first.attention_mask, torch.ones(2, 2, dtype=torch.long), turn.attention_mask]
    inputs = {"input_ids": torch.cat([past.sequences, turn.input_ids], 1), "attention_mask": torch.cat(masks, 1)}
    inputs |= grid_processor.image_processor([a, d, b, c, e], return_tensors="pt")
    assert answers(model, inputs, **tiny.cached(tiny.cache_of(past))).tolist() == answers(model, inputs).tolist()


HOT = {"do_sample": True, "temperature": 100.0, "top_k": 0, "num_return_sequences": 100, "max_new_tokens": NEW_TOKENS}


HOT_OPTIONS = {
    "arguments": HOT,
    "own GenerationConfig": {"generation_config": GenerationConfig(**HOT)},
    "own suppress_tokens": HOT | {"suppress_tokens": [7]},
}


@pytest.mark.parametrize("kind", HOT_OPTIONS)
def test_special_tokens_are_never_generated(kind, model, processor, monkeypatch):
    inputs = tiny.prompt(processor, [tiny.user(tiny.image(), "What?")])
    special, options = set(model.config.special_token_ids), HOT_OPTIONS[kind]

    def generated() -> set[int]:
        torch.manual_seed(0)
        return set(model.generate(**inputs, **options)[:, inputs.input_ids.shape[1] :].flatten().tolist())

    assert not generated() & (special | set(options.get("suppress_tokens", [])))
    # control: hot samples do reach these tokens
    monkeypatch.setattr(SuppressSpecialTokens, "__call__", lambda self, input_ids, scores: scores)
    assert generated() & special


@pytest.mark.parametrize("way", ["argument", "own GenerationConfig", "embeddings"])
def test_the_ban_of_repeated_n_grams_may_leave_out_the_prompt(way, model, monkeypatch):
    prompt, ban, hides_ids = torch.arange(30, 310).view(1, -1), {"no_repeat_ngram_size": 1}, way == "embeddings"

    def answer(**fields) -> list[int]:
        config = GenerationConfig(max_new_tokens=12, min_new_tokens=12, **fields)
        if way == "own GenerationConfig":
            return model.generate(prompt, config)[0, -12:].tolist()
        monkeypatch.setattr(model, "generation_config", config)
        given = {"inputs_embeds": model.get_input_embeddings()(prompt)} if hides_ids else {"input_ids": prompt}
        return model.generate(**given, **fields and ban)[0, -12:].tolist()

    anything, of_prompt = (
        answer(),
        set(range(30, 310)),
    )  # control: the first token comes again, others are the prompt's
    assert anything[0] in anything[1:] and of_prompt & set(anything)
    outside = answer(**ban, no_repeat_ngram_in_prompt=False)
    assert len(set(outside)) == len(outside) and of_prompt & set(outside)
    for fields in (ban, ban | {"no_repeat_ngram_in_prompt": True}):
        assert not of_prompt & set(answer(**fields)) or hides_ids


def test_a_subclass_is_known_to_transformers_by_its_name():
    """Trainer shifts smoothed labels, and the server gives images, by tables of class names."""
    Mine = type("Mine", (OmniFusionForConditionalGeneration,), {})
    for kind in ("CAUSAL", "MULTIMODAL"):
        table = getattr(modeling_auto, f"MODEL_FOR_{kind}_LM_MAPPING_NAMES")
        assert table["Mine"] == Mine.__name__ and "OmniFusionModel" not in table


def test_places_without_images_are_refused(model, grid_processor):
    """Trainers and wrappers that drop what they do not know would get an answer about nothing."""
    inputs = tiny.prompt(grid_processor, [tiny.user(tiny.image(), "What?")], [tiny.user("Only words")])
    count = (inputs.input_ids[0] == model.config.image_token_id).sum().item()
    bare = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    for call in (model, partial(model, labels=inputs.input_ids), partial(model.generate, max_new_tokens=2)):
        with pytest.raises(ValueError, match=rf"<image> tokens per sample \[{count}, 0\], image features 0"):
            call(**bare)
    words = tiny.prompt(grid_processor, [tiny.user("Only words")])  # control
    assert model.generate(input_ids=words.input_ids, max_new_tokens=2).shape[1] > words.input_ids.shape[1]


def test_places_of_a_new_turn_and_of_a_negative_prompt_need_images_where_those_of_the_cache_do_not(model, processor):
    first = tiny.prompt(processor, [tiny.user(tiny.image(), "What?")])
    past = model.generate(**first, max_new_tokens=2, return_dict_in_generate=True)

    def go_on(*ids: int):
        input_ids = torch.cat([past.sequences, torch.tensor([ids])], dim=1)
        model.generate(input_ids=input_ids, **tiny.cached(tiny.cache_of(past)), max_new_tokens=2)

    with pytest.raises(ValueError, match=r"per sample \[16\], image features 0"):
        go_on(*[model.config.image_token_id] * model.config.image_seq_length)
    go_on(5, 6, 7)  # control
    guided = partial(model.generate, **first, guidance_scale=1.5, max_new_tokens=2)
    with pytest.raises(ValueError, match="image features 0"):
        guided(negative_prompt_ids=first.input_ids)
    guided(negative_prompt_ids=tiny.prompt(processor, [tiny.user("Words")]).input_ids)  # control
