"""Formats figures and labels for the page."""

from __future__ import annotations

MINUS = "−"
MINUTE_S, HOUR_S = 60, 3600
_HUES = {
    "joy": 45,
    "joyful": 45,
    "happy": 45,
    "excited": 28,
    "powerful": 28,
    "surprise": 300,
    "anger": 2,
    "angry": 2,
    "mad": 2,
    "frustrated": 16,
    "disgust": 100,
    "fear": 268,
    "scared": 268,
    "sadness": 215,
    "sad": 215,
    "peaceful": 165,
}
"""Angle on the colour wheel for the emotions of the supported corpora. Neutral and unknown labels are
grey.
"""


def share(value: float) -> str:
    """Format a figure between 0 and 1 (or an entropy)."""
    return f"{value:.3f}"


def signed(value: float, digits: int = 3) -> str:
    """Format a figure with its sign; one that rounds to 0 has none."""
    text = f"{abs(value):.{digits}f}"
    sign = "" if not text.strip("0.") else "+" if value > 0 else MINUS
    return sign + text


def quantity(value: float, unit: str) -> str:
    """Format a number with its unit. Bytes are written in full, since they may have to be equal."""
    if unit == "s":
        return f"{value:.3f} s"
    return f"{value:,.0f} {unit}" if value == int(value) else f"{value:,.1f} {unit}"


def duration(seconds: float) -> str:
    """Format seconds as seconds, minutes or hours, whichever reads best."""
    if seconds < 2 * MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR_S:
        return f"{seconds / MINUTE_S:.1f} min"
    return f"{seconds / HOUR_S:.1f} h"


def is_hued(label: str) -> bool:
    """Whether a label has a colour of its own."""
    return label in _HUES


def hue(label: str) -> int:
    """Return a label's angle on the colour wheel, in degrees."""
    return _HUES[label]
