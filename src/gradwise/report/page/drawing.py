"""SVG by hand: a canvas of escaped elements, scales with round ticks, and the frame of a chart.

Colours are classes (`c0` to `c7`, `quiet`, `ink`), which the page's style sheet defines for light and dark.
A mark with a tip shows its values on hover and by the arrow keys.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from gradwise.text import clean, clipped

CHARACTER = 6.4
"""Pixels of a character of a label on average, at the 12 pixels of the style sheet."""


def fit(text: str, pixels: float) -> str:
    """Text cut to what fits into `pixels` beside a chart.

    >>> fit("a long name of a unit", 64)
    'a long ...'
    """
    return clipped(" ".join(clean(text).split()), max(4, int(pixels / CHARACTER)))


@dataclass
class Canvas:
    """Collects the elements of one figure."""

    width: float
    height: float
    label: str
    """What the figure shows, for screen readers."""
    parts: list[str] = field(default_factory=list)

    def add(
        self, element: str, *, tip: str | None = None, text: str | None = None, **attributes: object
    ) -> None:
        """Add an element with a tip shown on hover and a text as its content; `class_` is written `class`,
        and `_` in names of attributes `-`."""
        if tip is not None:
            attributes["data-tip"] = clean(tip)
        words = " ".join(
            f'{name.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
            for name, value in attributes.items()
        )
        self.parts.append(
            f"<{element} {words}/>"
            if text is None
            else f"<{element} {words}>{escape(clean(text))}</{element}>"
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, class_: str = "grid") -> None:
        """A straight line."""
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)

    def text(self, x: float, y: float, text: str, class_: str = "", anchor: str = "start") -> None:
        """A label; `anchor` is the part of it that lies at `x`."""
        self.add("text", text=text, x=x, y=y, class_=class_, text_anchor=anchor)

    def path(self, points: Sequence[tuple[float, float]], class_: str, *, closed: bool = False) -> None:
        """A line through points; gaps where a coordinate is not finite."""
        commands, pen = [], "M"
        for x, y in points:
            if not (math.isfinite(x) and math.isfinite(y)):
                pen = "M"
                continue
            commands.append(f"{pen}{_number(x)} {_number(y)}")
            pen = "L"
        if commands:
            self.add("path", d="".join(commands) + "Z" * closed, class_=class_)

    def svg(self, class_: str = "") -> Markup:
        """The figure."""
        size = f"0 0 {_number(self.width)} {_number(self.height)}"
        about = f'role="img" tabindex="0" aria-label="{escape(clean(self.label))}"'
        head = f'<svg viewBox="{size}" class="{class_}" {about}>'
        return Markup(head + "".join(self.parts) + "</svg>")


def _number(value: object) -> str:
    # Nobody sees a tenth of a pixel, and each digit makes the page larger.
    return f"{round(value, 1):g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Scale:
    """From values to pixels, linear or logarithmic.

    >>> Scale(0, 10, 100, 200)(5), Scale(1, 100, 0, 2, log=True)(10)
    (150.0, 1.0)
    """

    low: float
    high: float
    start: float
    """Pixels at `low`."""
    stop: float
    log: bool = False

    @classmethod
    def over(
        cls, values: Sequence[float], start: float, stop: float, *, margin: float = 0.05, log: bool = False
    ) -> "Scale":
        """A scale that all finite values fit in, with a margin at both ends."""
        drawable = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
        low, high = (min(drawable), max(drawable)) if drawable else (0.0, 1.0)
        if log:
            return cls(low / 1.5, high * 1.5, start, stop, log=True)
        # A constant learning rate, or a single evaluation: the scale would divide by zero.
        if low == high:
            low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
        return cls(low - margin * (high - low), high + margin * (high - low), start, stop)

    def __call__(self, value: float) -> float:
        if self.log:
            if value <= 0:
                return math.nan
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.stop - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round values within the scale.

        >>> Scale(0, 1, 0, 100).ticks()
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        """
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            powers = [10.0**power for power in range(first, last + 1)][:: max(1, (last - first) // count)]
            # Less than two powers of ten: the ends of the values, before `over` widened them.
            return powers if len(powers) > 1 else [self.low * 1.5, self.high / 1.5]
        step = _round_step((self.high - self.low) / count)
        # With a tolerance, or rounding would drop a tick at an end of the scale.
        first = math.ceil(self.low / step - 1e-9)
        return [round(n * step, 12) for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * each for each in (1, 2, 5, 10) if power * each >= rough * 0.999)


def tick_text(value: float) -> str:
    """A tick as people write it.

    >>> tick_text(2000.0), tick_text(0.25), tick_text(0.00002)
    ('2,000', '0.25', '2e-05')
    """
    if value and abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def x_axis(canvas: Canvas, scale: Scale, y: float, label: str) -> None:
    """Ticks and a label below a chart whose lowest line is at `y`."""
    middle = (scale.start + scale.stop) / 2
    for value in scale.ticks(max(2, int(abs(scale.stop - scale.start) / 64))):
        canvas.text(scale(value), y + 16, tick_text(value), "tick", "middle")
    canvas.line(scale.start, y, scale.stop, y, "axis")
    canvas.text(middle, y + 34, label, "label", "middle")


def y_axis(canvas: Canvas, scale: Scale, left: float, right: float, label: str) -> None:
    """Grid lines with their values, and a label above them."""
    for value in scale.ticks(max(2, int(abs(scale.stop - scale.start) / 44))):
        canvas.line(left, scale(value), right, scale(value))
        canvas.text(left - 6, scale(value) + 4, tick_text(value), "tick", "end")
    canvas.text(0, min(scale.start, scale.stop) - 10, label, "label")
