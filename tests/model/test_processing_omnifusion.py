"""The processor: image tokens are counted in one place, user text is data, images stay with their prompts."""

import base64
from io import BytesIO

import numpy as np
import pytest
import tiny
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast

from omnifusion_hf import OmniFusionProcessor, add_special_tokens
from omnifusion_hf.build.chat_template import chat_template_for
from omnifusion_hf.inference import TINY
from omnifusion_hf.model.processing_omnifusion import ESCAPE, TokenCount, escape
from omnifusion_hf.model.views_omnifusion import views_per_image


SPECIALS = ["<image>", "<img_start>", "<img_end>", "<user>", "<bot>", "</s>", "<s>"]
SIZES = [(40, 60), (7, 5), (33, 200), (150, 20)]


def test_a_count_of_tokens_is_printed_for_each_image_and_in_all():
    one = "5 views x 576 + 2 marks = 2882 tokens"
    assert str(TokenCount([5], 576, context_length=4096)) == f"{one}, 70.4% of a context of 4096"
    both = f"image 0: {one}\nimage 1: 1 view x 576 + 2 marks = 578 tokens\ntotal: 3460 tokens"
    assert str(TokenCount([5, 1], 576)) == both


def test_an_image_is_written_as_its_placeholders_between_the_marks(processor):
    views = {"image_view_index": np.array([0, 1, 2, 0])}
    for image, count in enumerate((3 * 16, 16)):
        assert processor.replace_image_token(views, image) == f"<img_start>{'<image>' * count}<img_end>"


def test_one_size_counts_as_a_list_of_one_and_options_of_other_parts_do_not_count(processor):
    grid = processor.count_tokens((40, 60), view_strategy="grid", regions=BOXES[0])
    options = {"images_kwargs": {"view_strategy": "grid", "regions": BOXES[:1]}, "padding": "longest"}
    assert grid == processor.count_tokens([(40, 60)], **options) and grid.share is None
    assert [count.views for count in (grid, processor.count_tokens((40, 60)))] == [[7], [1]]  # right: control
    assert processor.count_tokens([]).total == 0
    assert processor._get_num_multimodal_tokens().num_image_tokens is None
    for shapes in ([(40, 60, 3), (40, 60, 3)], (40, 60, 3), np.zeros((4, 4))):
        with pytest.raises(ValueError, match=r"image_sizes are \(height, width\) of each image"):
            processor.count_tokens(shapes)


BOXES = [[(0, 0, 9, 9), (20, 3, 40, 20)], [], [(0, 0, 5, 5)], []]
GRID = {"view_strategy": "grid", "grid_canvases": [[1, 2], [2, 2], [3, 1]]}
OPTIONS = [{}, {"regions": BOXES}, GRID, {"regions": BOXES} | GRID]
MODELS = [{"encoders": (family,)} for family in ("siglip", "dinov2", "internvl", "swin")]
TWO = {"encoders": ("clip", "dinov2"), "projector_type": "transformer"}


@torch.no_grad()
@pytest.mark.parametrize("parts", [*MODELS, TWO, {"vision_feature_select_strategy": "full"}])
def test_one_place_counts_for_prompts_plans_engines_and_features(parts):
    """Marks are included for prompts, not for engines and features."""
    model = tiny.model(tiny.config(**parts))
    ours, totals = tiny.processor(model.config), set()
    for options in OPTIONS:
        inputs = ours(text=["<image>"] * 4, images=[[tiny.image(size=size)] for size in SIZES], **options)
        count = ours.count_tokens(SIZES, context_length=100, **options)
        planned = ours._get_num_multimodal_tokens(SIZES, **options)
        views, index = torch.from_numpy(inputs.pixel_values), torch.from_numpy(inputs.image_view_index)
        features = model.get_image_features(views, index).pooler_output
        assert count.tokens == [len(row) for row in inputs.input_ids]
        assert count.image_tokens == planned.num_image_tokens == [len(tokens) for tokens in features]
        assert count.views == planned.num_image_patches == views_per_image(index) and sum(count.views) == len(views)
        of_one = [options | {"regions": options.get("regions", [[]] * 4)[image]} for image in range(4)]
        patches = ours.image_processor.get_number_of_image_patches
        assert count.views == [patches(*size, given) for size, given in zip(SIZES, of_one)]
        assert count.total == sum(count.tokens) and count.share == count.total / 100
        totals.add(count.total)
    assert len(totals) == 4


def test_a_count_off_by_one_raises_with_both_counts(processor, model):
    inputs = tiny.prompt(processor, [tiny.user(tiny.image(), "What?")], [tiny.user("Hi")])
    model(**inputs)
    ids = inputs.pop("input_ids")
    first = ids[0].tolist().index(processor.image_token_id)
    for place, token, count in ((-1, processor.image_token_id, 17), (first, 5, 15)):
        changed = ids.clone()
        changed[0, place] = token
        with pytest.raises(ValueError, match=rf"per sample \[{count}, 0\], image features 16"):
            model(**inputs, input_ids=changed)


def test_the_processor_names_the_sample_with_the_wrong_number_of_images(processor):
    for given, sample in (([[0], [1, 2]], 0), ([[0, 1, 2], []], 0), ([[0, 1], [2], [3]], 2), ([[0, 1], []], 1)):
        images = [[tiny.image(seed) for seed in seeds] for seeds in given]
        with pytest.raises(ValueError, match=rf"Sample {sample}: the prompts hold \[2, 1\] .* placeholders"):
            processor(text=["<image><image> both?", "<image> one?"], images=images)


def test_whatever_stands_for_an_image_goes_with_a_prompt_and_into_a_chat(processor, tmp_path):
    image, other, path = tiny.image(), tiny.image(1), tmp_path / "a.png"
    image.save(path)
    array, data = np.asarray(image), path.read_bytes()
    expected = processor.image_processor([image, other], return_tensors="pt").pixel_values
    given = [array, array / np.float32(255), torch.tensor(array).permute(2, 0, 1), path, path.as_uri(), BytesIO(data)]
    given += [base64.encodebytes(data).decode(), bytearray(data), {"bytes": data, "path": None}]
    for source in given:
        flat = processor(text="<image><image>", images=[source, other], do_rescale=False, return_tensors="pt")
        nested = processor(text=["<image>"] * 2, images=[[source], [other]], return_tensors="pt", padding=True)
        chat = {"role": "user", "content": [{"type": "image", "image": source}]}
        for inputs in (flat, nested, tiny.prompt(processor, [chat], [tiny.user(other)])):
            assert torch.equal(inputs["pixel_values"], expected), type(source)
        alone = processor(text="<image>", images=source, return_tensors="pt")
        assert torch.equal(alone["pixel_values"], expected[:1]), type(source)


def test_truncation_never_cuts_an_image_and_drops_none_silently(processor):
    """Wherever the cut falls: either all 18 tokens of the image are there or a `ValueError` speaks of max_length."""

    def cut(length: int, text: str, side: str = "right") -> list[int]:
        options = {"truncation": True, "max_length": length, "truncation_side": side}
        return processor(text=text, images=[tiny.image()], text_kwargs=options).input_ids[0]

    text, after = "<image><user> What colour is the sky?", "What colour is the sky in this picture? <image>"
    whole = processor(text=text, images=[tiny.image()]).input_ids[0]
    for length in range(18, len(whole)):
        assert cut(length, text) == whole[:length]
    for case in [*((length, text) for length in range(1, 18)), (5, after), (5, text, "left")]:
        with pytest.raises(ValueError, match="max_length"):
            cut(*case)


@pytest.mark.parametrize(
    "message", [{"tool_calls": [{"name": "f"}]}, {"content": [{"type": "text", "text": "x", "a": [1]}]}]
)
def test_a_key_of_a_message_or_part_that_nothing_reads_is_refused_by_name(message, processor):
    name = "a" if "content" in message else "tool_calls"
    with pytest.raises(ValueError, match=f"`{name}` would be lost"):
        tiny.prompt(processor, [{"role": "user", "content": "Hi"} | message])
    tiny.prompt(processor, [{"role": "user", "content": "Hi", "note": "harmless"}])  # control


def test_a_text_that_could_complete_a_token_at_either_end_is_escaped_there():
    tokens = ["<img_start>", "<bot>"]
    given = {"img_start>": (1, 0), "bot> ": (1, 0), "<img_start": (0, 1), " <": (0, 1), "> a token ends <": (1, 1)}
    for text, (before, after) in given.items():
        assert escape(text, tokens) == ESCAPE * before + text + ESCAPE * after
    assert escape("a < b, and b > c: neither", tokens) == "a < b, and b > c: neither"  # control: far from both ends


def test_the_mask_of_answers_covers_them_and_their_ends_alone(processor):
    first = [tiny.user(tiny.image(), "What?"), tiny.assistant("A sky.")]
    second = [tiny.user("And?"), tiny.assistant("Grass.")]
    options = {"add_generation_prompt": False, "return_assistant_tokens_mask": True}
    batch = tiny.prompt(processor, first + second, second, **options)
    answers = [ids[mask.bool()] for ids, mask in zip(batch.input_ids, batch.assistant_masks, strict=True)]
    assert processor.batch_decode(answers, skip_special_tokens=False) == ["A sky.</s> Grass.</s>", "Grass.</s>"]


def test_the_escape_character_itself_cannot_be_used_to_smuggle(processor):
    for trick in ("<im{}age>", "{}<image>", "<{}image>", "<image{}>", "{0}<{0}image>{0}"):
        assert processor.image_token_id not in tiny.prompt(processor, [tiny.user(trick.format(ESCAPE))]).input_ids


def test_no_images_in_any_spelling_is_text_only_and_a_placeholder_then_raises(processor):
    for prompts, images in ((["Hi"], None), (["Hi"], []), (["Hi"], [[]]), (["Hi"] * 2, [[], []])):
        assert "pixel_values" not in processor(text=prompts, images=images)
    with pytest.raises(ValueError, match=r"\[1\] `<image>` placeholders, but \[0\] images"):
        processor(text="an <image> tag")


def test_the_prompt_is_that_of_the_release_in_the_bundled_folder_too(processor):
    bundled = AutoProcessor.from_pretrained(TINY)
    assert bundled.chat_template == chat_template_for(bundled.tokenizer)
    conversation = [tiny.user(tiny.image(), "What?"), tiny.assistant("A sky."), tiny.user("Colour?")]
    for each in (processor, bundled):
        text = each.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        assert text == "This is a dialog with AI assistant.\n<image><user>What?<bot>A sky.</s><user>Colour?<bot>"


def test_a_tokenizer_that_was_not_prepared_is_refused():
    image_processor = tiny.processor(tiny.config()).image_processor
    raw = tiny.llm_tokenizer()
    with pytest.raises(ValueError, match="does not know `<image>`; .*add_special_tokens"):
        OmniFusionProcessor(image_processor, raw, 16)
    raw.add_special_tokens({"additional_special_tokens": SPECIALS[:5]})
    with pytest.raises(ValueError, match=r"does not remove the character U\+E0F5.*add_special_tokens"):
        OmniFusionProcessor(image_processor, raw, 16)
    OmniFusionProcessor(image_processor, add_special_tokens(raw), 16)


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_tokens_that_an_llm_looks_for_after_normalization_stay_text_when_typed(saved, named, tmp_path):
    """There the escape is gone. Ids, flags and ordinary added tokens stay as they are."""
    raw = tiny.llm_tokenizer()
    raw.add_tokens([AddedToken("<|end|>", special=not named, normalized=True, rstrip=True)], special_tokens=not named)
    raw.add_tokens([AddedToken("[DONE]", normalized=True)])
    if named:
        raw.eos_token = "<|end|>"
    template, tokenizer = chat_template_for(raw), add_special_tokens(raw)
    if saved:
        tokenizer.save_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    mark, done = tokenizer.convert_tokens_to_ids(["<|end|>", "[DONE]"])
    assert (mark, done) == (400, 401) and tokenizer.added_tokens_decoder[mark].rstrip
    assert tokenizer.added_tokens_decoder[done].normalized
    question = [{"role": "user", "content": f"a <|end|> b [DONE] <{ESCAPE}|end|>"}]
    ids = tokenizer.encode(tokenizer.apply_chat_template(question, chat_template=template, tokenize=False))
    assert mark not in ids and done in ids and tokenizer.decode(ids).count("<|end|>") == 2
    assert mark in tokenizer.encode("a <|end|> b")  # control: not escaped
    assert mark in raw.encode(f"a <{ESCAPE}|end|> b".replace(ESCAPE, ""))
    assert tokenizer.encode("What colour?") == raw.encode("What colour?")


def test_a_tokenizer_that_makes_special_tokens_of_text_is_refused():
    pieces = [("<s>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((character, -8.0) for character in "▁<>/sab")]
    backend = Tokenizer(models.Unigram(pieces, 2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    with pytest.raises(ValueError, match=r"makes special tokens of a user's text: \['</s>', '<s>'\]"):
        add_special_tokens(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>"))
    raw = tiny.llm_tokenizer()
    raw.add_special_tokens({"additional_special_tokens": ["|"]})
    with pytest.raises(ValueError, match=r"\['\|'\]. They are single characters"):
        add_special_tokens(raw)
    add_special_tokens(tiny.llm_tokenizer())  # control: a typed "0" is the special token "<0x30>", which harms nobody


@pytest.mark.parametrize("side", ["right", "left", None])
@pytest.mark.parametrize("load", [AutoProcessor.from_pretrained, OmniFusionProcessor.from_pretrained])
def test_the_padding_side_that_is_asked_for_holds(load, side, processor, tmp_path):
    """Without one it is the left, as generation needs, whatever the folder says."""
    processor.save_pretrained(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"padding_side": "left"', '"padding_side": "right"'))
    assert '"right"' in settings.read_text()
    loaded = load(tmp_path, **({} if side is None else {"padding_side": side}))
    for of_call in ({}, {"padding_side": "right"}):
        padded = loaded(text=["Hi", "Hi you there"], padding=True, **of_call).attention_mask[0]
        assert padded == sorted(padded, reverse=of_call.get("padding_side", side) == "right")
    assert loaded.tokenizer.padding_side == (side or "left")
