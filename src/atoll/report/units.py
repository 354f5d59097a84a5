"""Numbers as a person reads them: bytes, seconds, metrics.

Bytes are counted in powers of ten, as networks are sold and billed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def size(size_bytes: float | None) -> str:
    """A number of bytes in the unit that leaves one to three digits before the point.

    >>> size(0), size(999), size(1_840_000), size(2.5e9), size(None)
    ('0 B', '999 B', '1.84 MB', '2.5 GB', '–')
    """
    if size_bytes is None or not math.isfinite(size_bytes):
        return "–"
    value, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if abs(value) < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


def size_unit(largest: float) -> tuple[str, float]:
    """The unit for an axis that reaches `largest` bytes, and how many bytes it is.

    >>> size_unit(3.2e6), size_unit(12)
    (('MB', 1000000.0), ('bytes', 1.0))
    """
    units = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
    return next(((unit, scale) for unit, scale in units if largest >= scale), ("bytes", 1.0))


def joules(energy_j: float) -> str:
    """Energy in the unit that people are billed in, joules below a watt-hour.

    >>> joules(950.0), joules(7200.0), joules(9e6)
    ('950 J', '2 Wh', '2.5 kWh')
    """
    if abs(energy_j) < 3600:
        return f"{energy_j:.3g} J"
    return f"{energy_j / 3600:.3g} Wh" if abs(energy_j) < 3.6e6 else f"{energy_j / 3.6e6:.3g} kWh"


def grams(mass_g: float) -> str:
    """A mass.

    >>> grams(0.0125), grams(12.5), grams(12500.0)
    ('12.5 mg', '12.5 g', '12.5 kg')
    """
    value, unit = (mass_g * 1000, "mg") if abs(mass_g) < 1 else (mass_g, "g") if abs(mass_g) < 1000 else (mass_g / 1000, "kg")
    return f"{value:.3g} {unit}"


def duration(seconds: float | None) -> str:
    """A time span with two units at most.

    >>> duration(0.0042), duration(7.25), duration(59.9), duration(332), duration(90_000), duration(None)
    ('4.2 ms', '7.25 s', '59.9 s', '5 min 32 s', '1 d 1 h', '–')
    """
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 0 or seconds == 0:
        return f"{seconds:.3g} s"
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for large, small, large_s, small_s in (("min", "s", 60, 1), ("h", "min", 3600, 60)):
        if whole < large_s * (60 if large == "min" else 24):
            return f"{whole // large_s} {large} {whole % large_s // small_s} {small}"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def number(value: float | None, digits: int = 4) -> str:
    """A metric to `digits` significant digits; not-a-number and the infinities are said, not hidden.

    >>> number(3.14159), number(0.8731), number(1234567), number(2e-07), number(float("nan")), number(None)
    ('3.142', '0.8731', '1,234,567', '2e-07', 'not a number', '–')
    """
    if value is None:
        return "–"
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "−infinite"
    if value == 0:
        return "0"
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}".replace("-", "−") if abs(value) < 1e12 else f"{value:.{digits}g}"
    return f"{value:.{digits}g}".replace("-", "−", 1) if value < 0 else f"{value:.{digits}g}"


def is_share(name: str, values: Sequence[float]) -> bool:
    """Whether a metric is a share of one, better read in per cent.

    >>> is_share("accuracy", [0.5, 1.0]), is_share("accuracy", [87.0]), is_share("loss", [0.5])
    (True, False, False)
    """
    known = any(word in name.lower() for word in ("accuracy", "f1", "precision", "recall", "auc"))
    return known and all(0 <= value <= 1 for value in values if math.isfinite(value))


def figure(name: str, value: float | None) -> str:
    """A metric's value as its kind wants it: shares of one as percentages.

    >>> figure("accuracy", 0.8731), figure("loss", 1.25)
    ('87.3 %', '1.25')
    """
    if value is not None and is_share(name, [value]):
        return f"{100 * value:.1f} %"
    return number(value)


def count(value: int, noun: str, plural: str | None = None) -> str:
    """A count with its noun in the right number.

    >>> count(1, "round"), count(0, "round"), count(2, "client"), count(3, "loss", "losses")
    ('1 round', '0 rounds', '2 clients', '3 losses')
    """
    return f"{value:,} {noun if value == 1 else plural or noun + 's'}"
