"""Checkpoints as they are published load; whatever does not fit is an error that names it."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rsd_policy.backbones.openvla.backbone import Layout, OpenVLABackbone
from rsd_policy.backbones.openvla.checkpoint import load_openvla
from rsd_policy.backbones.openvla.config import LlamaConfig, OpenVLAConfig
from rsd_policy.backbones.openvla.files import resolve_directory
from rsd_policy.backbones.openvla.heads import L1ActionHead, ProprioProjector
from rsd_policy.backbones.openvla.loading import LM_HEAD, allocate, file_tensors
from rsd_policy.backbones.openvla.preprocessing import ImagePreprocessing
from rsd_policy.backbones.openvla.reference import L1Policy, TokenPolicy
from rsd_policy.backbones.openvla.tokenizer import PromptTokenizer
from rsd_policy.backbones.openvla.units import Units
from rsd_policy.backbones.openvla.vision import VisionConfig, unused_parameters
from rsd_policy.checkpoints.loading import load_policy
from rsd_policy.errors import CheckpointError, SetupError
from tests.backbones.openvla.random_checkpoint import (
    NORM_KEY,
    config_json,
    norm_stats,
    reference_shapes,
    save_pt,
    tensors,
    write_adapter,
    write_model,
)

Checkpoint = Callable[..., Path]
SHARD = "model-00002-of-00002.safetensors"


def edit_config(directory: Path, **changes: object) -> None:
    (directory / "config.json").write_text(json.dumps(config_json(**changes)))


@pytest.mark.parametrize("parallel", [True, False])
def test_true_size_has_exactly_the_published_names_and_shapes(checkpoint: Checkpoint, parallel: bool) -> None:
    config = OpenVLAConfig(LlamaConfig(vocab_size=32064), VisionConfig(), norm_stats())
    units = Units.from_statistics(config.norm_stats, NORM_KEY, with_proprio=True)
    tokenizer = PromptTokenizer(checkpoint(), config.llama.vocab_size, config.llama.bos_token_id)
    with torch.device("meta"):
        backbone = OpenVLABackbone(config, Layout(parallel, False, 8), ImagePreprocessing(), tokenizer, units)
        head, projector = L1ActionHead(backbone.hidden_size), ProprioProjector(backbone.hidden_size)
    ours = {name: list(tensor.shape) for name, tensor in file_tensors(backbone).items()}
    ours |= {f"vision_backbone.{name}": list(shape) for name, shape in unused_parameters(config.vision).items()}
    if parallel:
        assert LM_HEAD not in ours
        ours[LM_HEAD] = [32064, 4096]
    assert ours == reference_shapes("public", "model")
    for module, part in ((head, "action_head"), (projector, "proprio_projector")):
        found = {name: list(tensor.shape) for name, tensor in file_tensors(module).items()}
        assert found == reference_shapes("public", part)


def test_every_weight_comes_from_the_files(checkpoint: Checkpoint) -> None:
    policy = load_openvla(checkpoint())
    assert isinstance(policy.reference, L1Policy)
    model = tensors("model")
    for name, tensor in file_tensors(policy.backbone).items():
        if name.startswith("proprio_projector."):
            expected = tensors("proprio_projector")[name.removeprefix("proprio_projector.")]
        else:
            expected = model[name]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0, msg=name)
    head = tensors("action_head")
    for name, tensor in file_tensors(policy.reference.action_head).items():
        torch.testing.assert_close(tensor, head[name], rtol=0, atol=0, msg=name)


def test_one_file_without_index_loads_as_well(checkpoint: Checkpoint) -> None:
    one, two = (load_openvla(checkpoint(shards=shards)) for shards in (1, 2))
    for name, tensor in file_tensors(one.reference).items():
        torch.testing.assert_close(tensor, file_tensors(two.reference)[name], rtol=0, atol=0)


def test_names_without_module_prefix_load_as_well(own_checkpoint: Checkpoint) -> None:
    directory = own_checkpoint()
    for part in ("action_head", "proprio_projector"):
        save_pt(directory, part, prefix="")
    policy = load_openvla(directory)
    assert isinstance(policy.reference, L1Policy)
    expected = tensors("action_head")["model.fc2.bias"]
    torch.testing.assert_close(policy.reference.action_head.model.fc2.bias, expected, rtol=0, atol=0)


def test_bfloat16_is_the_files_weights_rounded(checkpoint: Checkpoint) -> None:
    policy, model = load_openvla(checkpoint(), dtype=torch.bfloat16), tensors("model")
    for name, tensor in file_tensors(policy.backbone.language_model, "language_model.").items():
        torch.testing.assert_close(tensor, model[name].bfloat16(), rtol=0, atol=0)


def test_kind_follows_from_the_files(checkpoint: Checkpoint) -> None:
    oft, plain = load_openvla(checkpoint()), load_openvla(checkpoint(oft=False))
    assert isinstance(oft.reference, L1Policy)
    assert (oft.horizon, oft.backbone.slots, oft.backbone.images.cameras) == (8, 56, ("agentview", "wrist"))
    assert isinstance(plain.reference, TokenPolicy)
    assert (plain.horizon, plain.backbone.slots, plain.backbone.images.cameras) == (1, 1, ("agentview",))
    assert load_openvla(checkpoint(proprio=False)).backbone.proprio_projector is None
    with pytest.raises(CheckpointError, match="predicts 1 step, got 8"):
        load_openvla(checkpoint(oft=False), horizon=8)


def test_missing_tensor_is_named(own_checkpoint: Checkpoint) -> None:
    directory = own_checkpoint()
    shard = load_file(directory / SHARD)
    name = next(name for name in sorted(shard) if name.startswith("language_model.model.layers"))
    del shard[name]
    save_file(shard, directory / SHARD)
    with pytest.raises(CheckpointError, match=f"missing: {name}"):
        load_openvla(directory)


def test_unexpected_tensor_is_named(own_checkpoint: Checkpoint) -> None:
    directory = own_checkpoint()
    shard = load_file(directory / SHARD)
    save_file({**shard, "language_model.model.layers.2.mlp.up_proj.weight": torch.zeros(2)}, directory / SHARD)
    with pytest.raises(CheckpointError, match=r"unexpected: language_model\.model\.layers\.2\.mlp"):
        load_openvla(directory)


def test_misshapen_tensor_is_named_with_both_shapes(own_checkpoint: Checkpoint) -> None:
    directory = own_checkpoint()
    edit_config(directory, text_config={**config_json()["text_config"], "intermediate_size": 176})
    with pytest.raises(CheckpointError, match=r"gate_proj.weight: expected \[176, 64\], got \[160, 64\]"):
        load_openvla(directory)


def test_nan_is_named(own_checkpoint: Checkpoint) -> None:
    directory = own_checkpoint()
    shard = load_file(directory / SHARD)
    name = next(name for name in sorted(shard) if name.startswith("language_model.model.layers"))
    shard[name].flatten()[3] = torch.nan
    save_file(shard, directory / SHARD)
    with pytest.raises(CheckpointError, match=f"holding NaN or infinity: {name}"):
        load_openvla(directory)


def test_truncated_shard_is_named(own_checkpoint: Checkpoint) -> None:
    path = own_checkpoint() / SHARD
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=f"{SHARD}: not a whole safetensors file"):
        load_openvla(path.parent)


def test_missing_shard_is_named(own_checkpoint: Checkpoint) -> None:
    directory = own_checkpoint()
    (directory / SHARD).unlink()
    with pytest.raises(CheckpointError, match=SHARD):
        load_openvla(directory)


def test_two_steps_of_a_head_are_ambiguous(own_checkpoint: Checkpoint) -> None:
    directory = own_checkpoint()
    shutil.copy(directory / "action_head--150000_checkpoint.pt", directory / "action_head--50000_checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"action_head--150000_checkpoint\.pt.*action_head--50000_checkpoint\.pt"):
        load_openvla(directory)


def test_pickled_code_is_not_run(own_checkpoint: Checkpoint, tmp_path: Path) -> None:
    witness = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, (f"open({str(witness)!r}, 'w')",)

    directory = own_checkpoint()
    (directory / "action_head--150000_checkpoint.pt").write_bytes(pickle.dumps(Attack(), protocol=2))
    with pytest.raises(CheckpointError, match=r"action_head--150000_checkpoint\.pt: expected a state dict"):
        load_openvla(directory)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "llava"}, "'model_type': 'llava'"),
        ({"vision_backbone_id": "siglip-vit-so400m"}, "siglip-vit-so400m"),
        ({"llm_backbone_id": "vicuna-v15-7b"}, "vicuna-v15-7b"),
        ({"text_config": {"model_type": "mistral"}}, "mistral"),
        ({"text_config": {"num_key_value_heads": 8}}, "'num_key_value_heads': 8"),
        ({"text_config": {"rope_scaling": {"type": "linear", "factor": 2.0}}}, "rope_scaling"),
        ({"vision_sizes": {"clip": {}}}, "clip"),
        ({"n_action_bins": "many"}, "many"),
    ],
)
def test_another_architecture_is_named(own_checkpoint: Checkpoint, changes: dict[str, object], named: str) -> None:
    directory = own_checkpoint()
    edit_config(directory, **changes)
    with pytest.raises(CheckpointError, match=named):
        load_openvla(directory)


def test_film_and_diffusion_are_refused(own_checkpoint: Checkpoint) -> None:
    directory = own_checkpoint()
    for part, what in (("vision_backbone", "FiLM"), ("noisy_action_projector", "diffusion")):
        path = directory / f"{part}--1_checkpoint.pt"
        path.touch()
        with pytest.raises(CheckpointError, match=what):
            load_openvla(directory)
        path.unlink()


def test_norm_key_is_asked_for_only_where_there_are_several(own_checkpoint: Checkpoint) -> None:
    directory = own_checkpoint()
    assert load_openvla(directory).norm_key == NORM_KEY
    with pytest.raises(CheckpointError, match=f"expected one of {NORM_KEY}; got 'bridge_orig'"):
        load_openvla(directory, norm_key="bridge_orig")
    (directory / "dataset_statistics.json").write_text(json.dumps(norm_stats(("bridge_orig", NORM_KEY))))
    with pytest.raises(CheckpointError, match=f"expected one of bridge_orig, {NORM_KEY}; none was given"):
        load_openvla(directory)
    policy = load_openvla(directory, norm_key="bridge_orig")
    expected = norm_stats(("bridge_orig",))["bridge_orig"]["action"]["q01"]
    np.testing.assert_array_equal(policy.backbone.units.action.q01, expected)


def test_dataset_statistics_replace_those_of_the_config(own_checkpoint: Checkpoint) -> None:
    directory = own_checkpoint()
    other = norm_stats(("other",))
    (directory / "dataset_statistics.json").write_text(json.dumps(other))
    assert load_openvla(directory).norm_key == "other"
    (directory / "dataset_statistics.json").unlink()
    assert load_openvla(directory).norm_key == NORM_KEY
    edit_config(directory, norm_stats=None)
    with pytest.raises(CheckpointError, match=r"no norm_stats and no dataset_statistics\.json"):
        load_openvla(directory)


def test_statistics_of_another_robot_are_refused(own_checkpoint: Checkpoint) -> None:
    directory = own_checkpoint()
    stats = norm_stats()
    stats[NORM_KEY]["action"] = {"q01": [-1.0] * 14, "q99": [1.0] * 14}
    (directory / "dataset_statistics.json").write_text(json.dumps(stats))
    with pytest.raises(CheckpointError, match=r"expected 7 values .* got \[\(14,\)"):
        load_openvla(directory)


def test_adapter_beside_merged_weights_is_not_applied_again(own_checkpoint: Checkpoint, checkpoint: Checkpoint) -> None:
    directory = own_checkpoint()
    write_adapter(directory, "elsewhere/base")
    merged, plain = load_openvla(directory), load_openvla(checkpoint())
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(file_tensors(merged.backbone)[name], file_tensors(plain.backbone)[name], rtol=0, atol=0)


def test_adapter_of_another_kind_or_model_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for changes, named in (({"use_dora": True}, "use_dora"), ({"r": 0}, "lora_alpha and r")):
        write_adapter(tmp_path, str(checkpoint()), **changes)
        with pytest.raises(CheckpointError, match=named):
            load_openvla(tmp_path)
        shutil.rmtree(tmp_path / "lora_adapter")
    write_adapter(tmp_path, str(checkpoint()))
    path = tmp_path / "lora_adapter" / "adapter_model.safetensors"
    stem = "base_model.model.language_model.model.layers.9.mlp.up_proj.lora_"
    save_file({**load_file(path), stem + "A.weight": torch.zeros(4, 64), stem + "B.weight": torch.zeros(160, 4)}, path)
    with pytest.raises(CheckpointError, match=r"has not: language_model\.model\.layers\.9\.mlp\.up_proj\.weight"):
        load_openvla(tmp_path)


def test_adapter_takes_its_base_from_the_argument(adapter_checkpoint: Path, checkpoint: Checkpoint) -> None:
    path = adapter_checkpoint / "lora_adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(CheckpointError, match="names no base model"):
        load_openvla(adapter_checkpoint)
    assert load_openvla(adapter_checkpoint, base=checkpoint()).horizon == 8


def test_an_unmerged_adapters_missing_base_is_called_that(adapter_checkpoint: Path, checkpoint: Checkpoint) -> None:
    """`base_model_name_or_path` is usually a path of the machine that trained; "no checkpoint" did not say of what."""
    elsewhere = "/root/.cache/huggingface/hub/models--openvla--openvla-7b/snapshots/31f090d"
    edit_adapter(adapter_checkpoint / "lora_adapter", elsewhere)
    with pytest.raises(CheckpointError, match=rf"unmerged LoRA adapter whose base model .*{elsewhere}.*--base"):
        load_openvla(adapter_checkpoint)
    with pytest.raises(CheckpointError, match=r"base model was given as '/gone', which is not here.*--base"):
        load_openvla(adapter_checkpoint, base="/gone")
    assert load_openvla(adapter_checkpoint, base=checkpoint()).horizon == 8
    with pytest.raises(CheckpointError, match="expected one for an unmerged LoRA adapter only"):
        load_openvla(checkpoint(), base=checkpoint())


def edit_adapter(folder: Path, base: str) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": base}))


def test_a_bare_folder_of_peft_is_an_adapter(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """`save_pretrained` of PEFT writes the adapter's files into the folder itself; "expected manifest.json"."""
    write_adapter(tmp_path, str(checkpoint(oft=False)))
    bare = (tmp_path / "lora_adapter").rename(tmp_path / "tuned")
    base, tuned = load_openvla(checkpoint(oft=False)), load_policy(bare)
    assert isinstance(tuned.reference, TokenPolicy)
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(file_tensors(tuned.reference.backbone)[name], file_tensors(base.backbone)[name])


def test_the_adapters_folder_of_a_whole_checkpoint_is_not_taken_for_one(adapter_checkpoint: Path) -> None:
    """With plain OpenVLA's head on OFT's adapter the arm would move, wrongly."""
    with pytest.raises(CheckpointError, match=rf"give {adapter_checkpoint}, which has its action_head"):
        load_policy(adapter_checkpoint / "lora_adapter")


def test_a_folder_of_the_hubs_cache_is_its_main_snapshot(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Users copy `models--*` from another machine's cache; "expected manifest.json"."""
    cache = tmp_path / "models--moojink--openvla-7b-oft"
    for revision, options in (("aaa", {"oft": False}), ("bbb", {})):
        shutil.copytree(checkpoint(**options), cache / "snapshots" / revision)
    with pytest.raises(CheckpointError, match=r"refs/main.*got \['aaa', 'bbb'\]"):
        load_policy(cache)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("bbb\n")
    assert load_policy(cache).horizon == 8
    shutil.rmtree(cache / "snapshots" / "bbb")
    (cache / "refs" / "main").unlink()
    assert load_policy(cache).horizon == 1


def test_a_quantised_checkpoint_is_called_that(own_checkpoint: Checkpoint) -> None:
    """float8: "isfinite not implemented"; bitsandbytes: a list of unexpected tensors."""
    directory = own_checkpoint()
    edit_config(directory, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(CheckpointError, match=r"quantised \(bitsandbytes\)"):
        load_openvla(directory)
    edit_config(directory)
    shard = load_file(directory / SHARD)
    name = next(name for name in sorted(shard) if name.endswith("mlp.up_proj.weight"))
    for kind, value in (("float8_e4m3fn", shard[name].to(torch.float8_e4m3fn)), ("uint8", torch.zeros(9, 1).byte())):
        companions = {f"{name}.absmax": torch.zeros(9), f"{name}.quant_state.bitsandbytes__nf4": torch.zeros(9).byte()}
        save_file({**shard, **(companions if kind == "uint8" else {}), name: value}, directory / SHARD)
        with pytest.raises(CheckpointError, match=rf"quantised \({name} is {kind}\); expected bfloat16"):
            load_openvla(directory)


def test_too_little_memory_is_a_setup_error() -> None:
    with pytest.raises(SetupError, match=r"cpu has no room for 4194304\.0 GiB of torch\.bfloat16 weights"):
        allocate(lambda: torch.nn.Linear(2**30, 2**21, bias=False), torch.device("cpu"), torch.bfloat16)


def test_hub_that_cannot_be_reached_is_a_setup_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(SetupError, match="give their directory"):
        resolve_directory("openvla/openvla-7b")
    with pytest.raises(CheckpointError, match="expected a directory, or a hub id"):
        resolve_directory(tmp_path / "missing")


def test_pickled_weights_of_the_model_are_refused(tmp_path: Path) -> None:
    edit_config(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"convert \['pytorch_model\.bin'\] to safetensors"):
        load_openvla(tmp_path)


def test_no_code_that_a_checkpoint_brings_is_run(own_checkpoint: Checkpoint) -> None:
    """Public checkpoints name modules of their own (`auto_map`) for transformers to import."""
    directory = own_checkpoint()
    (directory / "theirs.py").write_text("raise SystemExit('ran')\n")
    edit_config(directory, auto_map={"AutoConfig": "theirs.Config"})
    settings = {"tokenizer_class": "LlamaTokenizer", "auto_map": {"AutoTokenizer": ["theirs.Slow", "theirs.Fast"]}}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_openvla(directory).backbone.tokenizer("open the drawer")[-1] == 29871


def test_transformers_is_imported_for_openvla_alone() -> None:
    """It takes longer to import than the shipped policy to load."""
    code = "import sys, rsd_policy; rsd_policy.load_policy('mini'); sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_tokeniser_of_another_model_is_refused(own_checkpoint: Checkpoint) -> None:
    directory = own_checkpoint()
    (directory / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: file is missing"):
        load_openvla(directory)
    write_model(directory, shards=2)
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokeniser file"):
        load_openvla(directory)
