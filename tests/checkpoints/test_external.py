"""OpenVLA checkpoints through `load_policy`: policies in their own right, and below heads of ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from rsd_policy import Observation, RSDInferenceEngine, load_policy
from rsd_policy.checkpoints.external import identity
from rsd_policy.commands import train_heads as heads_cli
from rsd_policy.errors import CheckpointError, ObservationError, SetupError
from rsd_policy.evaluation.in_process.drivers import make_driver
from rsd_policy.evaluation.protocol import EvalConfig
from tests.backbones.openvla.random_checkpoint import NORM_KEY, config_json, norm_stats, write_adapter, write_checkpoint
from tests.policies import random_observation
from tests.training.test_heads import collected


@pytest.fixture(scope="module")
def oft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("oft"))


@pytest.fixture(scope="module")
def with_heads(oft: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads trained for a moment on the OFT checkpoint's hidden states."""
    directory = tmp_path_factory.mktemp("heads")
    collected(directory / "demos", 2)
    arguments = {
        "--policy": oft, "--data": directory / "demos", "--out": directory / "out", "--device": "cpu", "--steps": 3,
        "--batch-size": 4, "--head-width": 16, "--head-layers": 1, "--draft-layers": 0, "--exit-layer": 1,
    }  # fmt: skip
    assert heads_cli.main([str(part) for pair in arguments.items() for part in pair]) == 0
    return directory / "out"


def observation(seed: int = 0, instruction: str = "pick up the bowl") -> Observation:
    return random_observation(np.random.default_rng(seed), instruction)


@pytest.mark.parametrize(("variant", "horizon"), [("oft", 8), ("openvla", 1)])
def test_published_policy_answers_in_mode_baseline(tmp_path: Path, variant: str, horizon: int) -> None:
    policy = load_policy(write_checkpoint(tmp_path, oft=variant == "oft"))
    assert policy.reference is not None and policy.horizon == horizon
    engine = RSDInferenceEngine(policy, "baseline")
    seen = observation()
    (chunk,) = engine.stream(seen)
    assert np.array_equal(chunk.actions, policy.reference([seen])[0])
    assert chunk.actions.shape == (horizon, 7) and chunk.verified and chunk.tokens is None
    assert list(chunk.stats.stage_ms) == ["preprocess", "vision", "reference"]
    assert engine.totals.chunks == 1


@pytest.mark.parametrize("mode", ["speculative", "gated"])
def test_published_policy_has_no_other_mode_and_says_how_to_get_one(oft: Path, mode: str) -> None:
    with pytest.raises(CheckpointError, match=r"'baseline' only.*\./rsd train-heads --policy"):
        RSDInferenceEngine(load_policy(oft), mode)  # type: ignore[arg-type]


def test_unknown_norm_key_is_refused_with_the_known_ones(oft: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{NORM_KEY}; got 'bridge_orig'"):
        load_policy(oft, norm_key="bridge_orig")
    with pytest.raises(CheckpointError, match="norm_key 'bridge_orig'"):
        load_policy("mini", norm_key="bridge_orig")


def test_one_of_several_norm_keys_must_be_named(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path)
    (directory / "dataset_statistics.json").write_text(json.dumps(norm_stats((NORM_KEY, "other"))))
    with pytest.raises(CheckpointError, match="none was given"):
        load_policy(directory)
    policy = load_policy(directory, norm_key="other")
    assert policy.manifest["architecture"]["openvla"]["norm_key"] == "other"


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path)
    (directory / "config.json").write_text(json.dumps(config_json(model_type="llama")))
    with pytest.raises(CheckpointError, match=r"openvla.*llama"):
        load_policy(directory)


def test_missing_camera_is_named_before_any_compute(oft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = RSDInferenceEngine(load_policy(oft), "baseline")

    def computed(*_: object) -> None:
        raise AssertionError("the model was run on a bad observation")

    monkeypatch.setattr(engine.policy.backbone, "embed", computed)
    whole = observation()
    with pytest.raises(ObservationError, match="wrist"):
        engine.infer(Observation({"agentview": whole.images["agentview"]}, whole.proprio, whole.instruction))


def test_cameras_are_the_users_choice(tmp_path: Path) -> None:
    policy = load_policy(write_checkpoint(tmp_path), cameras=["front"])
    whole = observation()
    renamed = Observation({"front": whole.images["wrist"]}, whole.proprio, whole.instruction)
    assert RSDInferenceEngine(policy, "baseline").infer(renamed).actions.shape == (8, 7)


def test_hub_id_without_a_hub_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SetupError, match="no-such-organisation/no-such-policy"):
        load_policy("no-such-organisation/no-such-policy")


@pytest.mark.parametrize("name", ["maxi", "/no/such/directory"])
def test_name_of_nothing_says_what_is_expected(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"mini.*manifest\.json"):
        load_policy(name)


def test_heads_on_an_external_backbone_speculate_bit_for_bit(with_heads: Path, oft: Path) -> None:
    policy = load_policy(with_heads)
    assert policy.kind == "openvla" and policy.reference is None and policy.exit_layer == 1
    stored = {key.split(".")[0] for path in with_heads.glob("*.safetensors") for key in load_file(path)}
    assert stored == {"head", "draft"}
    baseline, speculative = (RSDInferenceEngine(policy, mode) for mode in ("baseline", "speculative"))
    chunks = set()
    for seed in range(3):
        seen = observation(seed, ("pick up the bowl", "open the top drawer")[seed % 2])
        expected = baseline.infer(seen)
        provisional, final = list(speculative.stream(seen))
        assert final.actions.tobytes() == expected.actions.tobytes()
        assert provisional.levels == 3 and final.levels == 8
        chunks.add(final.tokens.tobytes())
    assert len(chunks) > 1


def test_gate_needs_a_calibration(with_heads: Path) -> None:
    with pytest.raises(CheckpointError, match="rsd calibrate"):
        RSDInferenceEngine(load_policy(with_heads), "gated")


def copied(oft: Path, with_heads: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A backbone and heads trained for it in places of their own."""
    backbone = Path(shutil.copytree(oft, tmp_path / "backbone"))
    heads = Path(shutil.copytree(with_heads, tmp_path / "heads"))
    from rsd_policy.checkpoints.manifest import manifest_digest

    manifest = json.loads((heads / "manifest.json").read_text())
    manifest["architecture"]["openvla"]["source"] = str(backbone)
    manifest["manifest_sha256"] = manifest_digest(manifest)
    (heads / "manifest.json").write_text(json.dumps(manifest))
    load_policy(heads)
    return backbone, heads


def test_heads_refuse_a_backbone_that_changed(oft: Path, with_heads: Path, tmp_path: Path) -> None:
    backbone, heads = copied(oft, with_heads, tmp_path)
    write_checkpoint(backbone, shards=1)
    with pytest.raises(CheckpointError, match="expected the weights that the heads were trained for"):
        load_policy(heads)


def test_heads_whose_backbone_was_moved_take_its_new_place(oft: Path, with_heads: Path, tmp_path: Path) -> None:
    """The manifest holds the path on the machine that trained; what counts is what lies there."""
    backbone, heads = copied(oft, with_heads, tmp_path)
    moved = backbone.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=rf"backbone '{backbone}' of these heads.*--base"):
        load_policy(heads)
    found = load_policy(heads, base=moved)
    assert found.manifest["architecture"]["openvla"]["source"] == str(moved), "so that a copy of it needs no base"
    assert make_driver(EvalConfig(policy=str(heads), mode="speculative", base=str(moved), ros=False))
    other = write_checkpoint(tmp_path / "other", shards=1)
    with pytest.raises(CheckpointError, match="expected the weights that the heads were trained for"):
        load_policy(heads, base=other)


def test_a_checkpoint_that_is_whole_takes_no_base(oft: Path) -> None:
    with pytest.raises(CheckpointError, match="expected no base"):
        load_policy("mini", base=oft)


def test_an_adapters_identity_is_the_same_wherever_its_base_lies(oft: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(oft, tmp_path / "base"))
    write_adapter(tmp_path / "tuned", str(base))
    before = identity(str(tmp_path / "tuned"))
    moved = base.rename(tmp_path / "moved")
    assert identity(str(tmp_path / "tuned"), moved) == before
    path = tmp_path / "tuned" / "lora_adapter" / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": str(moved)}
    path.write_text(json.dumps(config, indent=2))
    assert identity(str(tmp_path / "tuned")) == before
    path.write_text(json.dumps(config | {"lora_alpha": 32}))
    assert identity(str(tmp_path / "tuned")) != before
