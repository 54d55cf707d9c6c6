"""Progress of an evaluation: a live display on a terminal, one line per episode elsewhere. Writes to stderr."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from rsd_policy.evaluation.protocol import EpisodeSpec
from rsd_policy.evaluation.results import ERROR, EpisodeResult


class Progress:
    """Episode i of n, step, successes so far, and the latest inference time.

    Args:
        total: episodes of the whole run.
        done: results that earlier calls of the same run have recorded.
        max_steps: step limit of an episode.
    """

    def __init__(
        self, total: int, max_steps: int, done: Sequence[EpisodeResult] = (), console: Console | None = None
    ) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._total, self._max_steps = total, max_steps
        self._finished = sum(result.outcome != ERROR for result in done)
        self._successes = sum(result.success for result in done)
        self._errors = 0
        self._rows: dict[EpisodeSpec, TaskID] = {}
        self._display: RichProgress | None = None
        self._overall: TaskID | None = None
        if 0 < self._finished < total:
            self._console.print(f"resuming: {self._finished} of {total} episodes are finished")
        if self._console.is_terminal:
            self._display = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._overall = self._display.add_task("episodes", total=total, completed=self._finished, note=self._note())
            self._display.start()

    def started(self, spec: EpisodeSpec, what: str = "") -> None:
        """Work on an episode begins; `what` says which when it is not to run it."""
        if self._display is not None:
            self._rows[spec] = self._display.add_task(
                f"  {what}task {spec.task} trial {spec.trial}", total=self._max_steps, note="preparing"
            )

    def ended(self, spec: EpisodeSpec) -> None:
        """Work on an episode has ended."""
        if self._display is not None and spec in self._rows:
            self._display.remove_task(self._rows.pop(spec))

    def stepped(self, spec: EpisodeSpec, step: int, inference_ms: float | None = None) -> None:
        """`step` control steps of the episode are done; `inference_ms` of the latest inference, when there was one."""
        if self._display is None or spec not in self._rows:
            return
        self._display.update(self._rows[spec], completed=step)
        if inference_ms is not None:
            self._display.update(self._rows[spec], note=f"inference {inference_ms:.0f} ms")

    def finished(self, result: EpisodeResult) -> None:
        spec = result.spec
        self._errors += result.outcome == ERROR
        self._finished += result.outcome != ERROR
        self._successes += result.success
        self.ended(spec)
        if self._display is not None and self._overall is not None:
            self._display.update(self._overall, completed=self._finished, note=self._note())
            if result.outcome != ERROR:
                return
        line = f"[{self._finished}/{self._total}] task {spec.task} trial {spec.trial}: {result.outcome}"
        if result.outcome == ERROR:
            line += f": {result.error}"
        else:
            line += f" after {result.steps} steps, {result.wall_s:.1f} s"
            if result.chunks:
                mean = sum(chunk.inference_ms for chunk in result.chunks) / len(result.chunks)
                line += f", inference {mean:.1f} ms"
            line += f", {self._note()}"
        self._console.print(line, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self._display is not None:
            self._display.stop()
            self._display = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _note(self) -> str:
        note = f"success {self._successes}/{self._finished}"
        return note + (f", errors {self._errors}" if self._errors else "")
