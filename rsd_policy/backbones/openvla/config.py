"""Architecture and normalisation statistics of an OpenVLA checkpoint, from its JSON files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd_policy.backbones.openvla.layout import CONFIG
from rsd_policy.backbones.openvla.vision import VisionConfig
from rsd_policy.errors import CheckpointError

STATISTICS = "dataset_statistics.json"
VISION_BACKBONE = "dinosiglip-vit-so-224px"
LLM_BACKBONE = "llama2-7b-pure"
UNQUANTISED = "expected bfloat16, float16 or float32; give the checkpoint that they were made from"


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of the language model.

    A public `config.json` states only what differs from transformers' LlamaConfig, whose defaults (4.40.1) these are;
    that is why `rms_norm_eps` is 1e-6 although Llama 2 itself has 1e-5.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    bos_token_id: int = 1
    eos_token_id: int = 2

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> LlamaConfig:
        """The `text_config` entry of a `config.json`.

        Raises:
            CheckpointError: not Llama, or a variant of it that these modules do not compute.
        """
        config = cls(**{name: entry[name] for name in cls.__dataclass_fields__ if name in entry})
        computed = {
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "rope_scaling": None,
            "tie_word_embeddings": False,
            "num_key_value_heads": config.num_attention_heads,
            "head_dim": config.hidden_size // config.num_attention_heads,
        }
        wrong = {name: entry[name] for name, value in computed.items() if name in entry and entry[name] != value}
        if wrong:
            expected = {name: computed[name] for name in wrong}
            raise CheckpointError(f"{CONFIG}, text_config: expected {expected}, got {wrong}; not an OpenVLA checkpoint")
        if config.hidden_size % (2 * config.num_attention_heads):
            raise CheckpointError(
                f"{CONFIG}, text_config: hidden_size {config.hidden_size} is not an even multiple of "
                f"{config.num_attention_heads} heads"
            )
        return config


@dataclass(frozen=True)
class OpenVLAConfig:
    """Everything that the files of a checkpoint say about its architecture and units.

    Attributes:
        llama: the language model.
        vision: the two vision towers.
        norm_stats: dataset key -> "action" and "proprio" -> "q01", "q99", "mask" -> values per dimension.
        action_bins: edges of the bins that plain OpenVLA's action tokens stand for.
        padded_tokens: rows at the end of the vocabulary that are no tokens (`pad_to_multiple_of`).
    """

    llama: LlamaConfig
    vision: VisionConfig
    norm_stats: dict[str, Any]
    action_bins: int = 256
    padded_tokens: int = 64

    @classmethod
    def from_directory(cls, directory: Path, statistics_directory: Path | None = None) -> OpenVLAConfig:
        """Read `config.json` and, where there is one, `dataset_statistics.json`, which replaces its `norm_stats`.

        An entry "vision_sizes" (see `VisionConfig.from_json`) gives other sizes than the named towers'; public
        checkpoints have none.

        Args:
            directory: holds `config.json`.
            statistics_directory: holds the statistics; the same by default.

        Raises:
            CheckpointError: a file is missing or not JSON, or the architecture is another one.
        """
        path = directory / CONFIG
        entry = read_json(path)
        expected = {"model_type": "openvla", "vision_backbone_id": VISION_BACKBONE, "llm_backbone_id": LLM_BACKBONE}
        wrong = {name: entry.get(name) for name, value in expected.items() if entry.get(name) != value}
        if wrong:
            wanted = {name: expected[name] for name in wrong}
            raise CheckpointError(
                f"{path}: expected {wanted}, got {wrong}; "
                "only OpenVLA and OpenVLA-OFT with the fused DINOv2-SigLIP towers on Llama 2 can be loaded"
            )
        if quantised := entry.get("quantization_config"):
            method = quantised.get("quant_method", quantised) if isinstance(quantised, dict) else quantised
            raise CheckpointError(f"{path}: the weights are quantised ({method}); {UNQUANTISED}")
        statistics = (statistics_directory or directory) / STATISTICS
        norm_stats = read_json(statistics) if statistics.is_file() else entry.get("norm_stats")
        if not norm_stats:
            raise CheckpointError(
                f"{path}: no norm_stats and no {STATISTICS} beside it; actions cannot be un-normalised without them"
            )
        try:
            return cls(
                LlamaConfig.from_json(entry.get("text_config") or {}),
                VisionConfig.from_json(entry.get("vision_sizes", {})),
                norm_stats,
                int(entry.get("n_action_bins", cls.action_bins)),
                int(entry.get("pad_to_multiple_of", cls.padded_tokens)),
            )
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: an entry is of the wrong type: {error}") from error

    def norm_key(self, key: str | None) -> str:
        """The dataset key to use: the given one, or the only one.

        Raises:
            CheckpointError: unknown, or None where there are several; the message lists them.
        """
        keys = sorted(self.norm_stats)
        if key is None and len(keys) == 1:
            return keys[0]
        if key not in self.norm_stats:
            asked = "none was given" if key is None else f"got '{key}'"
            raise CheckpointError(f"norm_key: expected one of {', '.join(keys)}; {asked}")
        return key


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        CheckpointError: missing, or not a JSON object.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a JSON file: {error}; fetch the checkpoint again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
