"""pipeline("image-text-to-text") on a saved folder answers as the model does when it is asked directly."""

import pytest
import tiny
from transformers import pipeline

from omnifusion_hf import OmniFusionProcessor


GREEDY = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
A, B, C = (tiny.image(seed, (40 + 30 * seed, 60)) for seed in range(3))
CHATS = {
    "one image": [tiny.user(A, "What?")],
    "two images": [tiny.user(A, "and", B, "What differs?")],
    "two turns": [tiny.user(A, "What?"), tiny.assistant("This."), tiny.user(C, "And this?")],
    "no image": [tiny.user("Only words here")],
}


@pytest.fixture(scope="module")
def folder(model, grid_processor, tmp_path_factory) -> str:
    """A model whose images have different numbers of views."""
    folder = tmp_path_factory.mktemp("grid")
    model.save_pretrained(folder)
    grid_processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def ask(folder):
    """The pipeline; with `trust_remote_code` the package wins over the folder's code where it is installed."""
    answer = pipeline("image-text-to-text", model=folder, trust_remote_code=True)
    assert type(answer.processor) is OmniFusionProcessor
    return lambda *inputs, **options: answer(*inputs, return_full_text=False, generate_kwargs=GREEDY, **options)


def expected(model, processor, *conversations) -> list[str]:
    inputs = tiny.prompt(processor, *conversations)
    ids = tiny.answers(model, inputs, GREEDY["max_new_tokens"])
    return processor.batch_decode(ids, skip_special_tokens=True)


# pipelines batch what has the same keys: chats with images
@pytest.mark.parametrize("names, batch_size", [(["one image"], 1), ([*CHATS], 1), ([*CHATS][:3], 3)])
def test_chats_are_answered_as_by_the_model_one_by_one(names, batch_size, ask, model, grid_processor):
    chats = [CHATS[name] for name in names]
    outputs = ask(text=chats if len(chats) > 1 else chats[0], batch_size=batch_size)
    found = [output[0]["generated_text"] if len(chats) > 1 else output["generated_text"] for output in outputs]
    assert found == [expected(model, grid_processor, chat)[0] for chat in chats] and all(found)


def test_images_and_prompts_may_come_apart_and_the_order_of_images_matters(ask, model, grid_processor):
    chats = list(CHATS.values())[:2]
    text = [grid_processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    found, turned = (
        [output["generated_text"] for output in ask(images=images, text=text)]
        for images in ([[A], [A, B]], [[A], [B, A]])
    )
    assert found == [expected(model, grid_processor, chat)[0] for chat in chats] != turned
