"""The matrix: every adapter x 1, 2, 3 encoders x every image strategy builds, trains, saves, loads and generates."""

import pytest
import tiny
import torch
import training_runs
from transformers import AutoModelForImageTextToText, AutoProcessor

from omnifusion_hf.model.modeling_omnifusion_projector import PROJECTORS
from omnifusion_hf.training.stages import apply_stage, part_of


ENCODERS = [("clip",), ("clip", "dinov2"), ("siglip", "dinov2", "internvl")]
# Views of a 40 x 60 and a 30 x 30 image; the first one has two regions.
STRATEGIES = {
    "whole": ({"view_strategy": "whole"}, None, [1, 1]),
    "grid": ({"view_strategy": "grid"}, None, [5, 3]),
    "regions": ({"view_strategy": "whole"}, [[[2, 3, 20, 30], [30, 5, 50, 25]], []], [3, 1]),
}
IMAGES = tiny.image(1, (40, 60)), tiny.image(2, (30, 30))


def config(projector_type: str, encoders: tuple[str, ...]):
    """Encoders of unequal length wherever the adapter's formula allows it."""
    sizes = [32] * len(encoders) if projector_type in ("mlp", "transformer") else [32, 48, 40][: len(encoders)]
    text = tiny.text_config(initializer_range=0.2)  # answers depend on the images
    fields = {"projector_type": projector_type, "projector_num_queries": 9, "projector_dropout": 0.0}
    return tiny.config(encoders, text=text, encoder_sizes=sizes, **fields)


def batch(processor, images=IMAGES, regions=None, answer: bool = False) -> dict:
    """Two conversations, one with an image, one with another; with `answer`, what training needs."""
    chats = [[tiny.user(image, "What?"), *[tiny.assistant("A red square.")] * answer] for image in images]
    options = {} if regions is None else {"regions": [[boxes] for boxes in regions]}
    return tiny.prompt(processor, *chats, add_generation_prompt=not answer, processor_kwargs=options)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("encoders", ENCODERS, ids=len)
@pytest.mark.parametrize("projector_type", PROJECTORS)
def test_every_mix_builds_trains_saves_loads_and_generates(projector_type, encoders, strategy, tmp_path):
    options, regions, num_views = STRATEGIES[strategy]
    model = tiny.model(config(projector_type, encoders))
    processor = tiny.processor(model.config, **options)
    inputs = batch(processor, regions=regions)
    image_tokens = (inputs["input_ids"] == model.config.image_token_id).sum(-1).tolist()
    assert image_tokens == [views * model.config.image_seq_length for views in num_views]

    before = {name: value.clone() for name, value in model.state_dict().items()}
    apply_stage(model, "pretrain")
    sample = batch(processor, regions=regions, answer=True)
    labels = sample["input_ids"].masked_fill(sample["attention_mask"] == 0, -100)
    training_runs.step(model, {**sample, "labels": labels})
    model.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    changed = training_runs.changed(before, loaded.state_dict())
    adapter = {name for name in before if part_of(name) == "multi_modal_projector"}
    # softmax does not see a bias that is the same for every key
    assert adapter - changed <= {name for name in adapter if name.endswith("k_proj.bias")}
    assert changed - adapter == {"model.language_model.embed_tokens.weight"}

    processor = AutoProcessor.from_pretrained(tmp_path)
    inputs = batch(processor, regions=regions)
    with torch.no_grad():
        logits = loaded(**inputs).logits
        assert torch.equal(logits, model(**inputs).logits)
        others = batch(processor, (tiny.image(3, (40, 60)), tiny.image(4, (30, 30))), regions)
        assert not torch.allclose(loaded(**others).logits, logits, atol=1e-2)  # control: the images matter
    options = {"num_beams": 2, "do_sample": False, "min_new_tokens": 4, "max_new_tokens": 4}
    answers = loaded.generate(**inputs, **options)
    for together, image, boxes in zip(answers, IMAGES, regions or [None, None]):
        alone = loaded.generate(**batch(processor, [image], regions and [boxes]), **options)
        assert together[-4:].tolist() == alone[0, -4:].tolist()
