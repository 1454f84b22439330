"""The adapters: each equals the formula or the PyTorch module that the paper names."""

import pytest
import tiny
import torch
from torch import nn

from omnifusion_hf.modeling_omnifusion_projector import PROJECTORS


def adapter(projector_type: str, encoders=("clip",), attention: str = "eager", **fields) -> nn.Module:
    config = tiny.config(encoders, projector_type=projector_type, **fields)
    config._attn_implementation = attention
    torch.manual_seed(0)
    return PROJECTORS[projector_type](config).eval()


def features(encoders: int = 1, patches: int = 16, width: int = 32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, patches, width, generator=generator) for _ in range(encoders)]


def pytorch_layer(layer: nn.Module, norm_first: bool = False) -> nn.TransformerEncoderLayer:
    """PyTorch's encoder layer with the weights of ours."""
    width, hidden = layer.linear1.in_features, layer.linear1.out_features
    reference = nn.TransformerEncoderLayer(width, 4, hidden, dropout=0.1, batch_first=True, norm_first=norm_first)
    own = layer.state_dict()
    state = {name: own[name] for name in own if not name.startswith("self_attn")}
    for kind in ("weight", "bias"):
        state[f"self_attn.in_proj_{kind}"] = torch.cat([own[f"self_attn.{part}_proj.{kind}"] for part in "qkv"])
        state[f"self_attn.out_proj.{kind}"] = own[f"self_attn.o_proj.{kind}"]
    reference.load_state_dict(state)
    return reference.eval()


def randomise_norms(layer: nn.Module):
    for norm in (layer.norm1, layer.norm2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_transformer_adapter_equals_pytorchs_encoder_layer(attention):
    projector = adapter("transformer", attention=attention)
    randomise_norms(projector.transformer_layer)
    [hidden_states] = features()
    expected = projector.linear(pytorch_layer(projector.transformer_layer)(hidden_states))
    torch.testing.assert_close(projector([hidden_states]), expected, rtol=0, atol=1e-6)
    pre_norm = projector.linear(pytorch_layer(projector.transformer_layer, norm_first=True)(hidden_states))
    assert not torch.allclose(projector([hidden_states]), pre_norm, atol=1e-2)  # control: the other order of norms


@torch.no_grad()
def test_case_21_the_transformer_adapter_gives_the_same_with_eager_and_sdpa():
    eager, sdpa = adapter("transformer", attention="eager"), adapter("transformer", attention="sdpa")
    torch.testing.assert_close(eager(features()), sdpa(features()), rtol=0, atol=1e-6)
    [hidden_states] = features()
    permuted = eager([hidden_states.flip(1)]).flip(1)  # control: attention is over all tokens, in no order
    torch.testing.assert_close(permuted, eager([hidden_states]), rtol=0, atol=1e-5)
    assert not torch.allclose(eager([hidden_states[:, :8]]), eager([hidden_states])[:, :8], atol=1e-3)


@torch.no_grad()
def test_the_mlp_adapter_is_two_linear_layers_with_gelu():
    projector = adapter("mlp")
    [hidden_states] = features()
    first, second = projector.linear_1, projector.linear_2
    inner = nn.functional.gelu(hidden_states @ first.weight.T + first.bias)
    torch.testing.assert_close(projector([hidden_states]), inner @ second.weight.T + second.bias, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("projector_type", sorted(PROJECTORS))
def test_several_encoders_enter_side_by_side_in_order(projector_type):
    projector = adapter(projector_type, encoders=("clip", "dinov2"))
    first, second = features(encoders=2)
    output = projector([first, second])
    assert output.shape == (3, 16, 32)
    assert not torch.allclose(output, projector([second, first]), atol=1e-3)


@pytest.mark.parametrize("projector_type", sorted(PROJECTORS))
def test_adapters_are_made_of_layers_that_serving_engines_can_replace(projector_type):
    assert not any(isinstance(module, nn.MultiheadAttention) for module in adapter(projector_type).modules())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_dropout_acts_in_training_only(attention):
    projector = adapter("transformer", attention=attention, projector_dropout=0.5)
    torch.testing.assert_close(projector(features()), projector(features()), rtol=0, atol=0)
    projector.train()
    assert not torch.equal(projector(features()), projector(features()))
    without = adapter("transformer", attention=attention, projector_dropout=0.0).train()
    torch.testing.assert_close(without(features()), without(features()), rtol=0, atol=0)
