"""What all figures share: style, colours for the colour-blind, legends that are never cut, units, files."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd_mpi.errors import UserError, plain
from fedkd_mpi.report.columns import UNITS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito without yellow (too pale on white); line styles and markers distinguish more runs.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D", "v", "P", "X", "*")
MAP = "cividis"  # looks the same with and without colour blindness
KINDS = ("png", "svg", "pdf")
LEGEND, HANDLE = 8.0, 46.0  # points: size of a legend's text, and width of line, marker and gaps beside it
SMALL, TINY = 8.0, 6.3  # points: names of runs and of layers beside an axis
LINE = 1.25  # height of a line of text over its size
BAR = 0.95  # inches beside a map: the colour bar, its numbers and its label
STYLE: dict[Any, Any] = {  # matplotlib's types list every key, and take no text for one
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titley": 1.0,  # else every draw looks for ticks above the axes
    "figure.titlesize": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 130,
    "svg.hashsalt": "fedkd_mpi",  # the same log gives the same file
    "pdf.fonttype": 42,  # journals refuse matplotlib's default
}
METRICS = {
    "accuracy": "accuracy",
    "f1": "F1",
    "auc": "AUC",
    "mrr": "MRR",
    "ndcg5": "nDCG@5",
    "ndcg10": "nDCG@10",
    "psnr": "PSNR (dB)",
    "psnr_gain": "gain in PSNR (dB)",
    "ssim": "SSIM",
    "ssim_uniform": "SSIM (uniform window)",
    "rmse": "RMSE",
    "psnr_full": "PSNR, full range (dB)",
    "ssim_full": "SSIM, full range",
    "ssim_uniform_full": "SSIM (uniform window), full range",
    "rmse_full": "RMSE, full range",
}


def style() -> Any:
    """Return the context in which figures are made and saved; raises UserError if matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("--plot and --html need matplotlib: pip install 'fedkd-mpi[report]'") from None
    return matplotlib.rc_context(STYLE)


def looks() -> Iterator[tuple[str, str, str]]:
    """Yield colour, line style and marker for one run after another; 56 differ, then they repeat."""
    lines = (line for line in cycle(LINES) for _ in COLOURS)
    return zip(cycle(COLOURS), lines, cycle(MARKERS))


def render(figure: Figure, kind: str) -> bytes:
    """Return a figure as the bytes of a png, svg or pdf file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.BytesIO()
    canvas: Any  # matplotlib's types do not know all of its methods
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box is shown instead
        # Unlike figure.savefig, these do not draw everything once more before they write.
        if kind == "svg":
            canvas = FigureCanvasSVG(figure)
            canvas.print_svg(buffer, metadata={"Date": None})
        elif kind == "pdf":
            canvas = FigureCanvasPdf(figure)
            canvas.print_pdf(buffer, metadata={"CreationDate": None})
        else:
            canvas = FigureCanvasAgg(figure)
            canvas.print_png(buffer)
    figure.dpi = STYLE["figure.dpi"]  # SVG and PDF leave another, which maps in the next kind would have
    return buffer.getvalue()


def metric_title(metric: str, less_is_better: bool = False) -> str:
    """Return the title of an axis of a metric."""
    return METRICS.get(metric, label(metric)) + (" (less is better)" if less_is_better else "")


def label(text: str, longest: int = 60) -> str:
    """Return text of a log as a label: escaped, cut, without formulas, and with a space before a leading _."""
    text = plain(text, longest).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def title(figure: Figure, *lines: str) -> float:
    """Write a title of wrapped lines above a figure of its final size; returns its height in inches."""
    width, height = figure.get_size_inches()
    text = "\n".join(part for line in lines for part in textwrap.wrap(line, int(width * 13)) or [""])
    figure.suptitle(text, y=1 - 0.05 / height)
    return 0.05 + (text.count("\n") + 1) * LINE * STYLE["figure.titlesize"] / 72


def legend(figure: Figure, handles: Sequence[Any], texts: Sequence[str]) -> float:
    """Write a legend below the axes: as many columns as fit, long labels wrapped.

    The figure becomes higher by the height of the legend, which is returned in inches.
    """
    if not handles:
        return 0.0
    width, height = figure.get_size_inches()
    widest = 72 * width - HANDLE
    texts = [_wrapped(text, widest) for text in texts]
    columns = max(1, min(len(texts), int(72 * width * 0.98 // (72 * max(map(inches, texts)) + HANDLE))))
    rows = -(-len(texts) // columns)
    lines = sum(max(text.count("\n") + 1 for text in texts[row::rows]) for row in range(rows))
    own = (lines + 1) * 1.55 * LEGEND / 72
    figure.set_size_inches(width, height + own)
    place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.0), "ncols": columns}
    figure.legend(handles, texts, frameon=False, fontsize=LEGEND, **place)
    return own


def arrange(
    figure: Figure,
    *,
    left: float,
    right: float = 0.15,
    above: float = 0.1,
    below: float = 0.5,
    across: float = 0.0,
    down: float = 0.0,
) -> None:
    """Set what is beside, above, below and between the axes of a figure of its final size and one grid, in inches.

    Fixed lengths, because matplotlib's layout engines draw every text several times to find theirs.
    """
    from matplotlib.transforms import ScaledTranslation

    width, height = figure.get_size_inches()
    rows, columns = figure.axes[0].get_gridspec().get_geometry()  # type: ignore[union-attr]
    wide = (width - left - right - (columns - 1) * across) / columns
    high = (height - above - below - (rows - 1) * down) / rows
    sides = {"left": left / width, "right": 1 - right / width, "bottom": below / height, "top": 1 - above / height}
    figure.subplots_adjust(**sides, wspace=across / wide, hspace=down / high)
    for axes in figure.axes:  # where numbers are of one height, their axis' label needs no search for them
        offset = ScaledTranslation(0, -0.3, figure.dpi_scale_trans)
        axes.xaxis.set_label_coords(0.5, 0.0, axes.transAxes + offset)


def bar(axes: Axes, image: Any, text: str) -> Any:
    """Draw the colour bar of a map to the right of its axes: it takes BAR inches; returns it."""
    inside = axes.inset_axes((1.02, 0.0, 0.025, 1.0))
    return axes.figure.colorbar(image, cax=inside, label=text)


def scaled(values: Any, kind: str) -> tuple[str, float]:
    """Return name and size of the unit in which the largest of the values is 1 or more: an axis has one unit."""
    known = np.abs(np.asarray(values, dtype=float))
    known = known[np.isfinite(known)]
    largest = float(known.max()) if len(known) else 0.0
    fitting = [unit for unit in UNITS[kind] if largest >= unit[1]]
    return fitting[-1] if fitting else UNITS[kind][0]


def whole(axis: Any) -> None:
    """Set the ticks of an axis to whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def logarithmic(axis: Any, values: Any, span: float = 20.0) -> None:
    """Make an axis logarithmic if positive values differ by more than a factor, with plain numbers at its ticks."""
    from matplotlib.ticker import LogLocator, NullFormatter

    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known) & (known > 0)]
    if not len(known) or known.max() < span * known.min():
        return
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    if known.max() < 300 * known.min():  # few powers of ten: more ticks need numbers
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def heat(
    axes: Axes, values: np.ndarray, rounds: np.ndarray, names: Sequence[str] | None, heading: str, norm: Any = None
) -> Any:
    """Draw a map of rows x rounds, rounds counted from 1; returns the image, for a colour bar."""
    if not len(values):  # of a log without clients: one empty row
        values = np.full((1, len(rounds)), np.nan)
    extent = (rounds[0] + 0.5, rounds[-1] + 1.5, len(values) - 0.5, -0.5)
    image = axes.imshow(values, aspect="auto", interpolation="nearest", cmap=MAP, extent=extent, norm=norm)
    axes.set_title(heading, fontsize="medium")
    if names is not None:
        step = -(-len(names) // 40)
        axes.set_yticks(range(0, len(names), step), names[::step], fontsize=TINY)
    axes.grid(False)
    axes.set_facecolor("0.85")  # what is unknown is grey, which the map has not
    whole(axes.xaxis)
    return image


def inches(text: str, size: float = LEGEND) -> float:
    """Return the width of the longest line of a text in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        return max(text_to_path.get_text_width_height_descent(line, font, False)[0] for line in text.split("\n")) / 72


def _wrapped(text: str, widest: float) -> str:
    """Return a text in lines that are at most `widest` points wide."""
    points = 72 * inches(text)
    if points <= widest:
        return text
    return textwrap.fill(text, max(8, int(0.9 * len(text) * widest / points)))
