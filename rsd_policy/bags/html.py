"""replay.html: one file with cameras beside curves, that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_policy.bags.answers import Answer, Replayed
from rsd_policy.bags.compare import FIELDS
from rsd_policy.bags.table import odd, verdict

FIELD_DISTANCE = 2.5
"""Between two fields of a plot, action units, which are in [-1, 1]."""

STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}.bad{color:#b00020}.good{color:#1b6e2c}
figure{display:flex;gap:1rem;align-items:flex-start;margin:1.5rem 0;flex-wrap:wrap}figure img{max-width:100%}
.camera{width:180px;image-rendering:auto}figcaption{width:100%;font-weight:600}"""


def write_html(summary: dict[str, Any], replayed: Replayed, path: Path) -> None:
    """Write the page.

    Args:
        summary: content of replay.json.
        replayed: the answers, and the pictures of the moments that differ most.
    """
    good = summary["within_tolerance"] is not False
    answers = {answer.stamp: answer for answer in replayed.answers}
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>replay of {_text(Path(summary['bag']).name)}</title><style>{STYLE}</style>",
        f"<h1>Replay of {_text(Path(summary['bag']).name)}</h1>",
        f"<p class={'good' if good else 'bad'}><strong>{_text(verdict(summary))}</strong></p>",
        _facts(summary),
        _table(summary),
        "".join(f"<p class=bad>{_text(line)}</p>" for line in odd(summary)),
        "<h2>Differences over the bag</h2>",
        _image(_timeline(replayed)),
        "<h2>The moments that differ most</h2>" if replayed.compared else "<h2>Moments</h2>",
        *(_moment(answers[stamp], images) for stamp, images in replayed.pictures.items()),
    ]
    path.write_text("\n".join(parts), encoding="utf-8")


def _facts(summary: dict[str, Any]) -> str:
    inference, then = summary["inference_ms"], summary["recorded_inference_ms"]
    rows = {
        "policy": f"{summary['policy']} {(summary['policy_sha256'] or '')[:12]}",
        "mode": summary["mode"],
        "robot": summary["robot"],
        "through": "policy_node over ROS" if summary["ros"] else "the engine in process",
        "observations": summary["observations"],
        "drafts accepted": _share(summary["acceptance_rate"]),
        "skipped": _share(summary["skip_rate"]),
        "inference, mean / p95": "" if not inference else f"{inference['mean']:.1f} / {inference['p95']:.1f} ms",
        "when recorded": "" if not then else f"{then['mean']:.1f} / {then['p95']:.1f} ms",
    }
    return "<table>" + "".join(f"<tr><td>{k}<td>{_text(str(v))}" for k, v in rows.items()) + "</table>"


def _table(summary: dict[str, Any]) -> str:
    if summary["largest"] is None:
        return ""
    rows = "".join(
        f"<tr class={'bad' if not summary['largest'][f] <= summary['tolerance'][f] else 'good'}><td>{f}"
        f"<td>{summary['largest'][f]:.6g}<td>{summary['tolerance'][f]:g}<td>{summary['units'][f]}"
        for f in FIELDS
    )
    return f"<h2>Largest differences</h2><table><tr><th>field<th>difference<th>tolerance<th>unit{rows}</table>"


def _moment(answer: Answer, images: dict[str, NDArray[np.uint8]]) -> str:
    what = f"{answer.stamp * 1e-9:.3f} s, '{answer.instruction}'"
    if answer.difference is not None:
        what += f": {answer.difference.translation_mm:.4g} mm, {answer.difference.rotation_rad:.4g} rad"
        if answer.difference.first is not None:
            what += f"; {answer.difference.first}"
    cameras = "".join(
        f"<img class=camera alt='{_text(name)}' title='{_text(name)}' src='{_jpeg(image)}'>"
        for name, image in images.items()
    )
    return f"<figure><figcaption>{_text(what)}</figcaption>{cameras}{_image(_curves(answer))}</figure>"


def _timeline(replayed: Replayed) -> Any:
    figure, axes = _axes(3, (10, 5))
    compared = replayed.compared
    times = [answer.stamp * 1e-9 for answer in compared]
    for axis, name, pick in zip(
        axes,
        ("mm", "rad", "gripper"),
        (lambda d: d.translation_mm, lambda d: d.rotation_rad, lambda d: d.largest[6]),
        strict=True,
    ):
        axis.plot(times, [pick(answer.difference) for answer in compared], ".-", linewidth=0.8)
        axis.set_ylabel(name)
    first = replayed.first
    if first is not None:
        for axis in axes:
            axis.axvline(first.stamp * 1e-9, color="#b00020", linewidth=0.8)
    axes[-1].set_xlabel("stamp of the observation, s" + (" (red: first outside the tolerance)" if first else ""))
    return figure


def _curves(answer: Answer) -> Any:
    """All fields below each other in one plot: seven of them would take five times as long to draw."""
    figure, (axis,) = _axes(1, (5, 6))
    levels = [-FIELD_DISTANCE * i for i in range(len(FIELDS))]
    for i, level in enumerate(levels):
        axis.axhline(level, color="#ddd", linewidth=0.5)
        if answer.expected is not None:
            label = "expected" if i == 0 else None
            axis.plot(answer.expected[:, i] + level, "o-", color="#999", markersize=3, label=label)
        axis.plot(answer.chunk.actions[:, i] + level, ".-", color="#1565c0", label="answer" if i == 0 else None)
    axis.set_yticks(levels, FIELDS)
    axis.legend(fontsize=7, loc="upper right")
    axis.set_xlabel("step of the chunk; lines are 2.5 action units apart")
    return figure


def _axes(number: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # not pyplot, which looks for a display

    figure = Figure(figsize=size)
    figure.subplots_adjust(left=0.15, right=0.97, top=0.97, bottom=0.1)
    return figure, figure.subplots(number, 1, sharex=True, squeeze=False)[:, 0]


def _image(figure: Any) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=90)
    return f"<img alt=curves src='data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}'>"


def _jpeg(image: NDArray[np.uint8]) -> str:
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((360, 360))
    out = io.BytesIO()
    picture.save(out, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _share(value: float | None) -> str:
    return "not compared" if value is None else f"{value:.1%}"


def _text(text: str) -> str:
    return html.escape(text, quote=True)
