"""What an episode loop reports to: keeps finished episodes and shows progress. Both loops (in process, ROS) use it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from rsd_policy.evaluation import provenance
from rsd_policy.evaluation.progress import Progress
from rsd_policy.evaluation.protocol import EpisodeSpec, EvalConfig
from rsd_policy.evaluation.results import EpisodeResult
from rsd_policy.evaluation.store import ResultStore


def open_run(directory: Path | str, config: EvalConfig, *, workers: int = 1) -> ResultStore:
    """Begin or continue the run in `directory`, with what runs it written down. Errors: see `ResultStore.open_run`."""
    hardware = provenance.hardware(config.device, workers)
    return ResultStore.open_run(directory, config, versions=provenance.versions(), hardware=hardware)


class Recorder:
    """Opens (or resumes) the results in `directory`; the caller runs `pending` and reports each episode here.

        with Recorder(directory, config) as recorder:
            for spec in recorder.pending():
                recorder.started(spec)
                ... recorder.stepped(spec, step, inference_ms) ...
                recorder.finished(EpisodeResult(spec, ...))

    Raises:
        ArgumentError, StoreError: see `ResultStore.open_run`.
    """

    def __init__(self, directory: Path | str, config: EvalConfig, *, workers: int = 1) -> None:
        self.store = open_run(directory, config, workers=workers)
        self.progress = Progress(len(config.episodes()), config.max_steps, self.store.episodes())

    def pending(self) -> list[EpisodeSpec]:
        return self.store.pending()

    def started(self, spec: EpisodeSpec) -> None:
        self.progress.started(spec)

    def stepped(self, spec: EpisodeSpec, step: int, inference_ms: float | None = None) -> None:
        self.progress.stepped(spec, step, inference_ms)

    def finished(self, result: EpisodeResult) -> None:
        """Record, then show: what was shown as finished is on disk."""
        self.store.record(result)
        self.progress.finished(result)

    def close(self) -> None:
        self.progress.close()
        self.store.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
