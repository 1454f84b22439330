"""torch.compile: one graph from pixels to logits on a model never called before, few recompiles, the same answers."""

from functools import partial

import pytest
import tiny
import torch
from torch import _dynamo as dynamo
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import CompileConfig

from omnifusion_hf.model.views_omnifusion import views_per_image


# Every adapter over what it may read: the last features of one encoder, all
# layers of two, sequences of encoders of two sizes.
TWO = {"encoders": ("clip", "dinov2"), "vision_feature_layer": "all"}
ADAPTERS = {
    "mlp": {"vision_feature_layer": 1},
    "transformer": {},
    "concatenation": {"encoders": ("clip", "swin"), "image_sizes": [32, 64]},
    "summation": TWO,
    "attention": TWO | {"projector_num_queries": 16},
}


@pytest.fixture(autouse=True)
def nothing_compiled():
    dynamo.reset()
    yield
    dynamo.reset()


def cold_model(**mix):
    """A model that was never called: a call installs hooks and fills caches that would hide a graph break."""
    text = tiny.text_config(initializer_range=0.2)
    text.num_hidden_layers = 1  # compiling takes its time
    return tiny.model(tiny.config(text=text, **mix))


def inputs_of(model, num_images: int, view_strategy: str = "grid"):
    processor = tiny.processor(model.config, view_strategy=view_strategy)
    images = [tiny.image(seed, (40 + 30 * seed, 60)) for seed in range(num_images)]
    return tiny.prompt(processor, [tiny.user(*images, "What?")])


@torch.no_grad()
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_cold_model_is_one_graph_with_the_same_logits(adapter):
    """By the default backend, inductor, as well, which rounds in another way."""
    model = cold_model(projector_type=adapter, **ADAPTERS[adapter])
    inputs = inputs_of(model, 2)
    backend, bound = ("inductor", 1e-4) if adapter == "mlp" else ("eager", None)
    compiled = torch.compile(model, fullgraph=True, backend=backend)(**inputs).logits
    torch.testing.assert_close(compiled, model(**inputs).logits, rtol=bound, atol=bound)
    assert not torch.allclose(compiled[:, -1], model(**inputs_of(model, 1)).logits[:, -1], atol=1e-3)


@torch.no_grad()
def test_compiled_image_features_are_the_tokens_of_all_images_and_a_wrong_number_is_still_refused():
    """Their split into images depends on values, which a graph does not have."""
    model = cold_model()
    inputs = inputs_of(model, 2)
    compiled = partial(torch.compile, fullgraph=True, backend="eager")
    arguments = (inputs.pixel_values, inputs.image_view_index)
    [tokens] = compiled(model.get_image_features)(*arguments).pooler_output
    torch.testing.assert_close(tokens, torch.cat(model.get_image_features(*arguments).pooler_output))
    with pytest.raises((dynamo.exc.TorchDynamoException, RuntimeError)):  # control
        compiled(views_per_image)(inputs.image_view_index)
    inputs.input_ids[0, inputs.input_ids[0].tolist().index(model.config.image_token_id)] = 0
    with pytest.raises(RuntimeError, match="call the model itself"):
        compiled(model)(**inputs)


COMPILES = {  # views, dynamic shapes, most images, graphs
    "one view": ("whole", None, 4, 2),
    "several views": ("grid", None, 4, 2),
    "control: static shapes": ("whole", False, 3, 3),
}


@torch.no_grad()
@pytest.mark.parametrize("view_strategy, dynamic, most_images, frames", COMPILES.values(), ids=COMPILES)
def test_one_to_four_images_compile_twice_at_most(view_strategy, dynamic, most_images, frames):
    model, counter = cold_model(), CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=dynamic)
    for num_images in range(1, most_images + 1):
        inputs = inputs_of(model, num_images, view_strategy)
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)
    assert counter.frame_count == frames


def test_training_compiles_with_the_same_gradients():
    model, gradients = cold_model(predicted_vocab_size=400).train(), []
    inputs = inputs_of(model, 2)
    inputs["labels"] = inputs.input_ids.where(inputs.input_ids < 400, -100)
    for step in (torch.compile(model, fullgraph=True, backend="aot_eager"), model):
        model.zero_grad()
        step(**inputs).loss.backward()
        gradients.append(model.model.multi_modal_projector.linear_1.weight.grad.clone())
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


def answer(model, inputs, **options) -> list[int]:
    return tiny.answers(model, inputs, **options)[0].tolist()


def test_static_cache_gives_the_tokens_of_the_dynamic_one_compiled_or_not():
    """transformers compiles the steps of a static cache by itself, but on accelerators only."""
    model, graphs = cold_model(), []
    everywhere = CompileConfig(fullgraph=True, backend=lambda graph, *_, **__: graphs.append(graph) or graph)
    everywhere._compile_all_devices = True
    for num_images in (2, 1):
        inputs = inputs_of(model, num_images)
        compiled = answer(model, inputs, cache_implementation="static", compile_config=everywhere)
        assert compiled == answer(model, inputs, cache_implementation="static", disable_compile=True)
        assert compiled == answer(model, inputs) != answer(model, inputs_of(model, 3))
    assert 0 < len(graphs) <= 2
    assert compiled == answer(torch.compile(model, backend="eager"), inputs)
