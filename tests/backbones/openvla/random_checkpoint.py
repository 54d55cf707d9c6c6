"""Small random checkpoints in the public file layout, the same bits on every machine.

Names and shapes are the original implementation's own (fixtures/reference_tensors.json.gz), the weights come from the
names (`synthetic.weight`), so that the original and this package can be run on the same files without keeping them.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.backbones.openvla.synthetic import noise, weight

FIXTURES = Path(__file__).parent / "fixtures"
NORM_KEY = "libero_spatial_no_noops"
VISION_SIZES = {
    "dino": {
        "width": 32, "depth": 3, "heads": 2, "mlp_width": 128,
        "registers": 4, "class_token": True, "layer_scale": True,
    },
    "siglip": {"width": 48, "depth": 3, "heads": 3, "mlp_width": 179, "attention_pool": True},
}  # fmt: skip
TEXT_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 32064,
    "pad_token_id": 32000,
}
LORA_RANK, LORA_ALPHA = 4, 8
LORA_LAYERS = (
    "language_model.model.layers.0.self_attn.q_proj",
    "language_model.model.layers.1.self_attn.v_proj",
    "language_model.model.layers.1.mlp.up_proj",
    "projector.fc2",
    "vision_backbone.featurizer.blocks.0.attn.qkv",
    "vision_backbone.fused_featurizer.attn_pool.q",
)
"""Of "all-linear", the original's choice, one of each kind; the last has no influence on the features."""


def reference_shapes(size: str, part: str) -> dict[str, list[int]]:
    """Name -> shape in the original implementation.

    Args:
        size: "small" (the sizes above) or "public".
        part: "model", "action_head" or "proprio_projector".
    """
    return json.loads(gzip.decompress((FIXTURES / "reference_tensors.json.gz").read_bytes()))[size][part]


def tensors(part: str) -> dict[str, Tensor]:
    """Random weights of a part of the small model."""
    shapes = reference_shapes("small", part)
    return {name: torch.from_numpy(random_weight(name, tuple(shape))) for name, shape in shapes.items()}


def random_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """`synthetic.weight`, so scaled that every input matters: sharp attention, action tokens that win the arg max."""
    if "embed_tokens" in name:
        return noise(name, shape)
    if len(shape) == 1 and name.endswith("weight"):
        return 1 + noise(name, shape) / 2
    values = weight(name, shape)
    if "lm_head" in name:
        values[:31744] /= 8
        values[32000:] /= 8
    if "q_proj" in name or "k_proj" in name:
        values *= 2
    return values


def norm_stats(keys: tuple[str, ...] = (NORM_KEY,)) -> dict[str, Any]:
    """Statistics like LIBERO's: seven action values with an unmasked gripper, eight of the state."""
    stats = {}
    for key in keys:
        q01, q99 = noise(f"{key}.q01", (7,)) / 4 - 0.6, noise(f"{key}.q99", (7,)) / 4 + 0.6
        q01[6], q99[6] = 0, 1
        low, high = noise(f"{key}.low", (8,)) - 1, noise(f"{key}.high", (8,)) + 1
        stats[key] = {
            "action": {"q01": q01.tolist(), "q99": q99.tolist(), "mask": [True] * 6 + [False]},
            "proprio": {"q01": low.tolist(), "q99": high.tolist()},
            "num_transitions": 1,
            "num_trajectories": 1,
        }
    return stats


def config_json(**changes: Any) -> dict[str, Any]:
    """`config.json` as the original saves it, with the towers' sizes added."""
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "llm_backbone_id": "llama2-7b-pure",
        "arch_specifier": "no-align+fused-gelu-mlp",
        "image_resize_strategy": "resize-naive",
        "use_fused_vision_backbone": True,
        "n_action_bins": 256,
        "pad_to_multiple_of": 64,
        "pad_token_id": 32000,
        "norm_stats": norm_stats(),
        "text_config": {"model_type": "llama", **TEXT_SIZES},
        "vision_sizes": VISION_SIZES,
        **changes,
    }


def write_model(directory: Path, shards: int = 2) -> None:
    """The model's safetensors: with an index when there is more than one."""
    model = tensors("model")
    names = sorted(model)
    if shards == 1:
        save_file(model, directory / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i::shards]
        save_file({name: model[name] for name in part}, directory / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    total = sum(tensor.nbytes for tensor in model.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def write_checkpoint(directory: Path, *, oft: bool = True, proprio: bool = True, shards: int = 2) -> Path:
    """A checkpoint of OpenVLA-OFT (with its `.pt` files as distributed training saves them) or of OpenVLA."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config_json()))
    write_model(directory, shards)
    write_tokenizer(directory / "tokenizer.json")
    if oft:
        (directory / "dataset_statistics.json").write_text(json.dumps(norm_stats()))
        save_pt(directory, "action_head", prefix="module.")
        if proprio:
            save_pt(directory, "proprio_projector", prefix="module.")
    return directory


def save_pt(directory: Path, part: str, prefix: str) -> None:
    """`<part>--150000_checkpoint.pt`."""
    state = {prefix + name: tensor for name, tensor in tensors(part).items()}
    torch.save(state, directory / f"{part}--150000_checkpoint.pt")


def write_adapter(directory: Path, base: str, **changes: Any) -> None:
    """`lora_adapter/` as PEFT saves it."""
    folder = directory / "lora_adapter"
    folder.mkdir(parents=True)
    shapes = reference_shapes("small", "model")
    state = {}
    for layer in LORA_LAYERS:
        outputs, inputs = shapes[f"{layer}.weight"]
        for part, shape in (("A", (LORA_RANK, inputs)), ("B", (outputs, LORA_RANK))):
            name = f"base_model.model.{layer}.lora_{part}.weight"
            state[name] = torch.from_numpy(noise(name, shape) / 2)
    save_file(state, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": LORA_RANK,
        "lora_alpha": LORA_ALPHA,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "target_modules": sorted({layer.rpartition(".")[2] for layer in LORA_LAYERS}),
        "use_dora": False,
        "use_rslora": False,
        **changes,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def write_tokenizer(path: Path) -> None:
    """A byte-fallback BPE with Llama's rules and ids where they matter: bytes from 3, the lone space at 29871."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    letters = "etaoinsrhldcumfpgwybvkxjqzIWOT?:."
    merges = [("▁", "t"), ("t", "h"), ("▁", "th"), ("▁th", "e"), ("o", "b"), ("r", "o"), ("ro", "b"), ("o", "t")]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    vocabulary |= {"▁": 29871, **{letter: 29872 + i for i, letter in enumerate(letters)}}
    vocabulary |= {left + right: 300 + i for i, (left, right) in enumerate(merges)}
    # Names for the ids between, which no text gives: the package warns of each id that has none.
    vocabulary |= {f"<unused {i}>": i for i in set(range(29871)) - set(vocabulary.values())}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>")])
    tokenizer.save(str(path))
