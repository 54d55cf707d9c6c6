"""Writes fixtures/reference_*.npz and reference_tensors.json.gz from the original implementations; see README.md.

    python make_reference_fixtures.py openvla-oft CHECKOUT      # transformers: the OFT fork
    python make_reference_fixtures.py openvla CHECKOUT          # transformers: 4.40.1

Run from this repository's root, in an environment with the originals' versions. CHECKOUT is the public repository's.
"""

from __future__ import annotations

import ast
import gzip
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path.cwd()))
from tests.backbones.openvla import random_checkpoint as small
from tests.backbones.openvla.synthetic import noise

VARIANT, CHECKOUT = sys.argv[1], Path(sys.argv[2])
INSTRUCTIONS = ("Pick up the black bowl", "open the drawer, then put the bowl in it!", "é 中 wörld  two  spaces")


def package(name: str, path: Path | None) -> types.ModuleType:
    """A module without its `__init__`: the originals' import TensorFlow and training code that is not needed here."""
    module = types.ModuleType(name)
    if path is not None:
        module.__path__ = [str(path)]
    sys.modules[name] = module
    return module


for part in ("", ".models", ".vla", ".training", ".extern", ".extern.hf"):
    package(f"prismatic{part}", CHECKOUT / f"prismatic{part}".replace(".", "/"))
for part in ("diffusers", "diffusers.schedulers", "diffusers.schedulers.scheduling_ddim"):
    package(part, None).DDIMScheduler = object  # type: ignore[attr-defined]

create_model = timm.create_model
shrink = True


def create_small_model(name: str, **options: Any) -> nn.Module:
    """timm's towers with the sizes of `random_checkpoint`."""
    tower = small.VISION_SIZES["dino" if "dinov2" in name else "siglip"]
    sizes = {"embed_dim": tower["width"], "depth": tower["depth"], "num_heads": tower["heads"]} if shrink else {}
    return create_model(name, **options, **sizes)


timm.create_model = create_small_model

from prismatic.extern.hf.configuration_prismatic import OpenVLAConfig  # noqa: E402
from prismatic.extern.hf.modeling_prismatic import OpenVLAForActionPrediction  # noqa: E402
from transformers import LlamaTokenizerFast  # noqa: E402


def original_function(file: str, name: str, **names: Any) -> Any:
    """One function of a file that cannot be imported here because of what else it imports."""
    tree = ast.parse((CHECKOUT / file).read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    for node in tree.body:
        assert isinstance(node, ast.FunctionDef)
        node.returns = None
        for argument in node.args.args:
            argument.annotation = None
    namespace = {"np": np, **names}
    exec(compile(tree, file, "exec"), namespace)
    return namespace[name]


def write_shapes() -> None:
    """Names and shapes of the originals' weights, small and at the published size."""
    global shrink
    from prismatic.models.action_heads import L1RegressionActionHead
    from prismatic.models.projectors import ProprioProjector

    linspace, shapes = torch.linspace, {}
    torch.linspace = lambda *arguments, **options: linspace(*arguments, **{**options, "device": "cpu"})
    entry = small.config_json()
    kept = ("vision_backbone_id", "llm_backbone_id", "arch_specifier", "image_resize_strategy")
    for size, text in (("small", small.TEXT_SIZES), ("public", {"vocab_size": 32064, "pad_token_id": 32000})):
        shrink = size == "small"
        config = OpenVLAConfig(**{name: entry[name] for name in kept}, text_config=text)
        with torch.device("meta"):
            model = OpenVLAForActionPrediction(config)
            width = model.llm_dim
            parts = {
                "model": model,
                "action_head": L1RegressionActionHead(width, width, 7),
                "proprio_projector": ProprioProjector(width, 8),
            }
        shapes[size] = {
            part: {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
            for part, module in parts.items()
        }
    shrink, torch.linspace = True, linspace
    data = json.dumps(shapes, separators=(",", ":")).encode()
    (small.FIXTURES / "reference_tensors.json.gz").write_bytes(gzip.compress(data, 9, mtime=0))


def load(directory: Path) -> Any:
    """The original model in float32, its statistics as the original's evaluation sets them."""
    model = OpenVLAForActionPrediction.from_pretrained(directory, torch_dtype=torch.float32).eval()
    statistics = directory / "dataset_statistics.json"
    if statistics.is_file():
        model.norm_stats = json.loads(statistics.read_text())
    return model


def first_layer(model: Any) -> list[Tensor]:
    """Filled by every forward pass with the first layer's hidden states."""
    outputs: list[Tensor] = []
    model.language_model.model.layers[0].register_forward_hook(lambda *call: outputs.append(call[2][0].clone()))
    return outputs


def prompt(directory: Path, instruction: str) -> Any:
    """Token ids and mask as the original's processor gives them."""
    tokenizer = LlamaTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"), padding_side="right")
    text = f"In: What action should the robot take to {instruction.lower()}?\nOut:"
    return dict(tokenizer(text, return_tensors="pt"))


def run_oft(directory: Path, images: int, with_proprio: bool, case: str) -> dict[str, Any]:
    """`predict_action` with the L1 head, then the evaluation's treatment of the gripper."""
    from prismatic.models.action_heads import L1RegressionActionHead
    from prismatic.models.projectors import ProprioProjector
    from prismatic.vla.constants import ACTION_PROPRIO_NORMALIZATION_TYPE, NormalizationType

    def load_part(module: nn.Module, part: str) -> nn.Module:
        state = torch.load(directory / f"{part}--150000_checkpoint.pt", weights_only=True)
        module.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
        return module.eval()

    model = load(directory)
    model.vision_backbone.set_num_images_in_input(images)
    outputs = first_layer(model)
    inputs = prompt(directory, INSTRUCTIONS[0])
    options: dict[str, Any] = {"action_head": load_part(L1RegressionActionHead(64, 64, 7), "action_head")}
    if with_proprio:
        normalise = original_function(
            "experiments/robot/openvla_utils.py",
            "normalize_proprio",
            ACTION_PROPRIO_NORMALIZATION_TYPE=ACTION_PROPRIO_NORMALIZATION_TYPE,
            NormalizationType=NormalizationType,
        )
        state = noise(f"state {case}", (8,)).astype(np.float64) * 2
        options["proprio"] = normalise(state, model.norm_stats[small.NORM_KEY]["proprio"])
        options["proprio_projector"] = load_part(ProprioProjector(64, 8), "proprio_projector")
    pixels = torch.from_numpy(noise(f"pixels {case}", (1, 6 * images, 224, 224)) * 2)
    actions, hidden = model.predict_action(**inputs, pixel_values=pixels, unnorm_key=small.NORM_KEY, **options)
    start = 256 * images + int(with_proprio) + inputs["input_ids"].shape[1]
    binarise, invert = (
        original_function("experiments/robot/robot_utils.py", name)
        for name in ("normalize_gripper_action", "invert_gripper_action")
    )
    return {
        f"{case}/length": outputs[0].shape[1],
        f"{case}/hidden_layer1": outputs[0][0, start : start + 56][::5].numpy(),
        f"{case}/hidden": hidden[0, ::5].numpy(),
        f"{case}/actions": actions,
        f"{case}/executed": np.stack([invert(binarise(action)) for action in actions]),
    }


def run_openvla(directory: Path, i: int) -> dict[str, Any]:
    """`predict_action` of the autoregressive original, with the tokens it decoded."""
    case, model = f"openvla{i}", load(directory)
    outputs, normed, generated = first_layer(model), [], []
    model.language_model.model.norm.register_forward_hook(lambda *call: normed.append(call[2].clone()))
    generate = model.generate

    def listening(*arguments: Any, **options: Any) -> Tensor:
        generated.append(generate(*arguments, **options))
        return generated[0]

    model.generate = listening
    pixels = torch.from_numpy(noise(f"pixels {case}", (1, 6, 224, 224)) * 2)
    inputs = prompt(directory, INSTRUCTIONS[i])
    actions = model.predict_action(**inputs, pixel_values=pixels, unnorm_key=small.NORM_KEY, do_sample=False)
    return {
        f"{case}/length": outputs[0].shape[1],
        f"{case}/hidden_layer1": outputs[0][0, -1].numpy(),
        f"{case}/hidden": normed[0][0, -1].numpy(),
        f"{case}/tokens": generated[0][0, -7:].numpy(),
        f"{case}/actions": actions,
    }


def merged_by_peft(directory: Path, folder: Path) -> Path:
    """The checkpoint with `random_checkpoint`'s adapter merged."""
    from peft import PeftModel

    small.write_adapter(folder, "")
    merged = PeftModel.from_pretrained(load(directory), folder / "lora_adapter").merge_and_unload()
    merged.save_pretrained(folder)
    for path in (
        *directory.glob("*_checkpoint.pt"),
        directory / "dataset_statistics.json",
        directory / "tokenizer.json",
    ):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@torch.no_grad()
def main() -> None:
    temporary = Path(tempfile.mkdtemp())
    arrays: dict[str, Any] = {}
    if VARIANT == "openvla":
        directory = small.write_checkpoint(temporary / "openvla", oft=False)
        for i in range(len(INSTRUCTIONS)):
            arrays |= run_openvla(directory, i)
        np.savez_compressed(small.FIXTURES / "reference_openvla.npz", **arrays)
        return
    write_shapes()
    directory = small.write_checkpoint(temporary / "oft")
    for images in (1, 2):
        for with_proprio in (False, True):
            arrays |= run_oft(directory, images, with_proprio, f"oft_images{images}_proprio{int(with_proprio)}")
    arrays |= run_oft(merged_by_peft(directory, temporary / "merged"), 2, True, "lora")
    for i, instruction in enumerate(INSTRUCTIONS):
        arrays[f"prompt{i}/ids"] = prompt(directory, instruction)["input_ids"][0].numpy()
    np.savez_compressed(small.FIXTURES / "reference_oft.npz", **arrays)


main()
