"""The adapters: each equals the formula or the PyTorch module that the paper names."""

import weakref

import pytest
import tiny
import torch
from torch import nn

from omnifusion_hf import OmniFusionForConditionalGeneration
from omnifusion_hf.model.modeling_omnifusion_projector import PROJECTORS


def adapter(projector_type: str, encoders=("clip",), **fields) -> nn.Module:
    config = tiny.config(encoders, projector_type=projector_type, **fields)
    torch.manual_seed(0)
    return PROJECTORS[projector_type](config).eval()


def features(count: int = 1, patches: int = 16, width: int = 32, seed: int = 1) -> list[torch.Tensor]:
    """One per encoder, or one per layer."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, patches, width, generator=generator) for _ in range(count)]


def attention_state(attention: nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    """The weights by PyTorch's names."""
    state = {}
    for kind in ("weight", "bias"):
        *parts, output = (getattr(getattr(attention, f"{part}_proj"), kind) for part in "qkvo")
        state |= {f"{prefix}in_proj_{kind}": torch.cat(parts), f"{prefix}out_proj.{kind}": output}
    return state


def pytorch_layer(layer: nn.Module, norm_first: bool = False) -> nn.TransformerEncoderLayer:
    """PyTorch's encoder layer with the weights of ours."""
    width, hidden = layer.linear1.in_features, layer.linear1.out_features
    reference = nn.TransformerEncoderLayer(width, 4, hidden, dropout=0.1, batch_first=True, norm_first=norm_first)
    state = {name: value for name, value in layer.state_dict().items() if not name.startswith("self_attn")}
    reference.load_state_dict(state | attention_state(layer.self_attn, "self_attn."))
    return reference.eval()


@torch.no_grad()
def test_the_transformer_adapter_equals_pytorchs_encoder_layer_over_the_features_of_all_encoders():
    projector, given = adapter("transformer", ("clip", "dinov2")), features(2)
    layer = projector.transformer_layer
    randomised(layer.norm1), randomised(layer.norm2)
    output, joined = projector(given), torch.cat(given, dim=-1)
    torch.testing.assert_close(output, projector.linear(pytorch_layer(layer)(joined)), rtol=0, atol=1e-6)
    pre_norm = projector.linear(pytorch_layer(layer, norm_first=True)(joined))
    assert not torch.allclose(output, pre_norm, atol=1e-2)  # control: the other order of norms


@torch.no_grad()
def test_the_mlp_adapter_is_two_linear_layers_with_gelu():
    projector, given = adapter("mlp", ("clip", "dinov2")), features(2)
    first, second = projector.linear_1, projector.linear_2
    inner = nn.functional.gelu(torch.cat(given, dim=-1) @ first.weight.T + first.bias)
    torch.testing.assert_close(projector(given), inner @ second.weight.T + second.bias, rtol=0, atol=1e-6)
    assert not torch.allclose(projector(given), projector(given[::-1]), atol=1e-3)  # control


def randomised(projector: nn.Module) -> nn.Module:
    """Inits at zero, one and 1 / L would hide a missing norm, bias or coefficient."""
    for parameter in projector.parameters():
        parameter.data += torch.randn_like(parameter) * 0.3
    return projector


@torch.no_grad()
def test_the_concatenation_adapter_is_linear_maps_then_the_transformer_adapter_over_both_sequences():
    projector = randomised(adapter("concatenation", ("clip", "dinov2"), encoder_sizes=[32, 48]))
    first, second = features(patches=16) + features(patches=36)
    one, two = projector.encoder_linears
    sequence = torch.cat([first @ one.weight.T + one.bias, second @ two.weight.T + two.bias], dim=1)
    expected = projector.linear(pytorch_layer(projector.transformer_layer)(sequence))
    assert expected.shape == (3, 16 + 36, 32)
    torch.testing.assert_close(projector(iter([first, second])), expected, rtol=0, atol=1e-5)


def merged_literally(merge: nn.Module, layers: list[torch.Tensor]) -> torch.Tensor:
    normed = [nn.functional.layer_norm(x, (32,), layer.gain, layer.shift) for x, layer in zip(layers, merge.maps)]
    return sum(c * (x @ layer.weight.T) for c, x, layer in zip(merge.coefficients, normed, merge.maps))


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(16, 36), (36, 16), (16, 16), (16,), (16, 36, 16)])
def test_the_summation_adapter_is_the_papers_formula_with_short_sequences_continued_by_zeros(lengths):
    sizes = [{16: 32, 36: 48}[length] for length in lengths]
    projector = randomised(adapter("summation", ("clip", "dinov2", "siglip")[: len(sizes)], encoder_sizes=sizes))
    layers = [features(3, length, seed=seed) for seed, length in enumerate(lengths)]
    merges = [merged_literally(*pair) for pair in zip(projector.merges, layers)]
    padded = [torch.cat([m, torch.zeros(3, max(lengths) - m.shape[1], 32)], dim=1) for m in merges]
    expected = projector.linear(nn.functional.gelu(sum(padded)))
    output = projector(feature for encoder in layers for feature in encoder)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_summation_adapter_has_the_gradients_of_the_formula(frozen, autocast):
    projector = randomised(adapter("summation"))
    layers = [layer.requires_grad_(not frozen) for layer in features(3)]
    literal = projector.linear(nn.functional.gelu(merged_literally(projector.merges[0], layers)))
    wanted = dict(projector.named_parameters()) | ({} if frozen else {"features": layers[1]})
    expected = torch.autograd.grad(literal.square().sum(), wanted.values())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = projector(layers)
    found = torch.autograd.grad(output.float().square().sum(), wanted.values())
    with torch.no_grad():  # computed in another way
        torch.testing.assert_close(projector(layers), literal, rtol=1e-4, atol=1e-4)
    for name, ours, theirs in zip(wanted, found, expected):
        largest = theirs.abs().max()
        assert largest > 1e-3, name
        assert (ours - theirs).abs().max() / largest < (3e-2 if autocast else 1e-5), name


@torch.no_grad()
def test_the_attention_adapter_reads_both_sequences_with_trained_queries():
    fields = {"encoder_sizes": [32, 48], "projector_num_queries": 7}
    projector = randomised(adapter("attention", ("clip", "dinov2"), **fields))
    layers = features(3, 16), features(3, 36, seed=2)
    merges = [nn.functional.gelu(merged_literally(*pair)) for pair in zip(projector.merges, layers)]
    sequence, queries = torch.cat(merges, dim=1), projector.queries.expand(3, -1, -1)
    reference = nn.MultiheadAttention(32, 4, batch_first=True)
    reference.load_state_dict(attention_state(projector.attention))
    expected = projector.linear(nn.functional.gelu(reference(queries, sequence, sequence)[0]))
    assert expected.shape == (3, 7, 32)
    torch.testing.assert_close(projector([*layers[0], *layers[1]]), expected, rtol=1e-4, atol=1e-5)


WIDTHS = {"mlp": None, "transformer": 2 * 32, "concatenation": 32, "summation": None, "attention": 40}


@pytest.mark.parametrize("projector_type", WIDTHS)
def test_heads_divide_the_width_of_all_encoders_of_one_or_of_the_llm(projector_type):
    config = tiny.config(("clip", "dinov2"), projector_type=projector_type)
    config.text_config.hidden_size = 40
    assert PROJECTORS[projector_type].attention_width(config) == WIDTHS[projector_type]


def test_layers_are_taken_one_at_a_time_and_let_go():
    alive = []

    def layers():
        for feature in features(6):
            alive.append(weakref.ref(feature := feature.clone()))
            yield feature
            del feature
            held.append(sum(reference() is not None for reference in alive))

    held = []
    with torch.no_grad():
        adapter("summation", ("clip", "dinov2"))(layers())
    assert max(held) <= 1
    alive.clear(), held.clear()
    kept = list(layers())
    assert max(held) == len(kept) == 6  # control: a reader that keeps them is seen


@pytest.mark.parametrize("projector_type", ["summation", "attention"])
def test_weights_missing_from_a_checkpoint_start_as_in_a_new_model(projector_type, tmp_path):
    model = tiny.model(tiny.config(projector_type=projector_type))
    own = {"coefficients", "queries"}
    state = {name: value for name, value in model.state_dict().items() if name.rsplit(".")[-1] not in own}
    model.save_pretrained(tmp_path, state_dict=state)
    for _ in range(3):
        dirt = [torch.full((1000,), 7.0) for _ in range(100)]
        del dirt
        loaded = OmniFusionForConditionalGeneration.from_pretrained(tmp_path).model.multi_modal_projector
        torch.testing.assert_close(loaded.merges[0].coefficients, torch.full((3,), 1 / 3))
        if projector_type == "attention":
            assert 0.015 < loaded.queries.std() < 0.025


def test_dropout_acts_in_the_four_places_of_pytorchs_layer_and_in_training_only(monkeypatch):
    dropped = []

    def attend(query, key, value, dropout_p):
        dropped.append(("attention", dropout_p))
        return query

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", attend)
    projector = adapter("transformer", projector_dropout=0.25)
    layer = projector.transformer_layer
    layer.dropout.register_forward_hook(lambda module, args, output: dropped.append((args[0].shape[-1], module.p)))
    projector(features())
    assert dropped.pop(0) == ("attention", 0.0) and dropped == [(32, 0.25), (2048, 0.25), (32, 0.25)]
    torch.testing.assert_close(projector(features()), projector(features()), rtol=0, atol=0)  # modules know eval mode
    dropped.clear()
    projector.train()(features())
    assert dropped == [("attention", 0.25), (32, 0.25), (2048, 0.25), (32, 0.25)]
    assert not torch.equal(projector(features()), projector(features()))
