"""Where a checkpoint's files are: a local directory, or the hub's cache of one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rsd_policy.backbones.openvla.config import read_json
from rsd_policy.backbones.openvla.layout import ADAPTER, ADAPTER_CONFIG, adapter_directory, snapshot
from rsd_policy.backbones.openvla.lora import BASE, LoraAdapter
from rsd_policy.errors import CheckpointError, SetupError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HUB_PATTERNS = ("*.json", "*.safetensors", "*_checkpoint.pt")


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of one checkpoint.

    Attributes:
        directory: as named by the user.
        weights: directory with `config.json` and the model's safetensors: the same, or the base of an adapter.
        shards: the model's safetensors.
        action_head: OFT's head; None for plain OpenVLA.
        proprio_projector: OFT's projector of the state; None for models without.
        adapter: LoRA adapter to merge; None for merged weights.
    """

    directory: Path
    weights: Path
    shards: tuple[Path, ...]
    action_head: Path | None
    proprio_projector: Path | None
    adapter: LoraAdapter | None

    def beside(self, name: str) -> Path:
        """Directory to read a file such as the tokeniser's from: the checkpoint's own, else the base's."""
        return self.directory if (self.directory / name).is_file() else self.weights


def find_files(path_or_id: str | Path, base: str | Path | None = None) -> CheckpointFiles:
    """Find and check a checkpoint's files; tensors are not read.

    When the model's weights are in the directory, an adapter beside them is merged in them already (that is how
    OpenVLA-OFT's training saves them) and is not applied again.

    Args:
        path_or_id: directory or hub id.
        base: directory or hub id of the weights below an adapter; by default what its configuration names.

    Raises:
        CheckpointError: files are missing, ambiguous or of a variant that is not supported.
        SetupError: it is on a hub that cannot be reached.
    """
    directory = resolve_directory(path_or_id)
    for pattern, what in (("vision_backbone--*", "FiLM towers"), ("noisy_action_projector--*", "a diffusion head")):
        found = sorted(entry.name for entry in directory.glob(pattern))
        if found:
            raise CheckpointError(f"{directory}: {found} belong to {what}, which this package does not compute")
    head, projector = (one_file(directory, f"{part}--*_checkpoint.pt") for part in ("action_head", "proprio_projector"))
    if projector and not head:
        raise CheckpointError(
            f"{directory}: {projector.name} needs an action_head--*_checkpoint.pt beside it; fetch that too"
        )
    place = None if has_weights(directory) else adapter_directory(directory)
    if place is None:
        if base is not None:
            raise CheckpointError(
                f"base '{base}': expected one for an unmerged LoRA adapter only; {directory} holds weights of its own"
            )
        return CheckpointFiles(directory, directory, find_shards(directory), head, projector, None)
    _check_whole(directory, head)
    adapter = LoraAdapter(place)
    weights = find_base(place, adapter.base, base)
    return CheckpointFiles(directory, weights, find_shards(weights), head, projector, adapter)


def _check_whole(directory: Path, head: Path | None) -> None:
    """A folder `lora_adapter` is half a checkpoint: without the head beside it another policy would be loaded."""
    beside = one_file(directory.resolve().parent, "action_head--*_checkpoint.pt")
    if directory.resolve().name == ADAPTER and head is None and beside is not None:
        raise CheckpointError(
            f"{directory}: expected a whole checkpoint, got the adapter of one; give {directory.resolve().parent}, "
            f"which has its {beside.name}"
        )


def find_base(place: Path, named: str, given: str | Path | None) -> Path:
    """Directory of the weights below the adapter in `place`: as given, else as the adapter names them.

    Raises:
        CheckpointError, SetupError: it is not there; the message says that it is the adapter's base which is missing.
    """
    advice = f"say where it is with --base (base= of load_policy), or write it into {ADAPTER_CONFIG} as {BASE}"
    if not (given or named):
        raise CheckpointError(f"{place}: an unmerged LoRA adapter that names no base model; {advice}")
    try:
        return resolve_directory(given or named)
    except (CheckpointError, SetupError) as error:
        origin = "was given as" if given else f"is named in {ADAPTER_CONFIG} as"
        raise type(error)(
            f"{place}: an unmerged LoRA adapter whose base model {origin} '{given or named}', which is not here "
            f"({error}); {advice}"
        ) from error


def resolve_directory(path_or_id: str | Path) -> Path:
    """A local directory: the path itself, its snapshot when it is a folder of the hub's cache, or the hub's snapshot of
    an id such as "openvla/openvla-7b".

    Raises:
        CheckpointError: neither a directory nor of the form of a hub id.
        SetupError: huggingface_hub is not installed, or the snapshot cannot be had.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return snapshot(path)
    name = str(path_or_id)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(f"no checkpoint '{name}': expected a directory, or a hub id such as 'openvla/openvla-7b'")
    advice = f"fetch the files of '{name}' on a machine that reaches the hub and give their directory"
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise SetupError(f"'{name}' is no directory; to ask the hub, install huggingface_hub, or {advice}") from error
    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_PATTERNS)))
    except Exception as error:  # the client raises errors of many libraries
        raise SetupError(f"'{name}' is no directory, and the hub did not give it ({error}); {advice}") from error


def one_file(directory: Path, pattern: str) -> Path | None:
    """The file of that pattern, None when there is none.

    Raises:
        CheckpointError: there are several.
    """
    found = sorted(directory.glob(pattern))
    if len(found) > 1:
        names = [path.name for path in found]
        raise CheckpointError(f"{directory}: expected one {pattern}, got {names}; keep the one that fits the weights")
    return found[0] if found else None


def has_weights(directory: Path) -> bool:
    """Whether the model's own weights are in the directory."""
    return any((directory / name).is_file() for name in (INDEX, SINGLE))


def find_shards(directory: Path) -> tuple[Path, ...]:
    """The safetensors that hold the model.

    Raises:
        CheckpointError: none, or some that the index names are missing.
    """
    if (directory / INDEX).is_file():
        weight_map = read_json(directory / INDEX).get("weight_map") or {}
        shards = tuple(directory / name for name in sorted(set(weight_map.values())))
    else:
        shards = (directory / SINGLE,)
    missing = [path.name for path in shards if not path.is_file() or path.parent != directory]
    if missing or not shards:
        pickled = sorted(path.name for path in directory.glob("pytorch_model*.bin"))
        advice = f"convert {pickled} to safetensors" if pickled else "fetch the checkpoint again"
        raise CheckpointError(f"{directory}: weight files are missing: {missing or [SINGLE]}; {advice}")
    return shards
