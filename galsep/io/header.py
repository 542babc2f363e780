"""FITS headers as they come: broken cards, odd units, and what astropy has to say about them."""

import contextlib
import math
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from astropy.io import fits
    from astropy.units import UnitBase

__all__ = [
    "CardValue",
    "add_cards",
    "ascii_text",
    "clean_header",
    "header_number",
    "knows_unit",
    "one_line",
    "parse_unit",
    "quiet_astropy",
]

CardValue = str | int | float | bool | None
"""What a header card may hold; ``None`` and NaN give a card without value."""

# Words for counts that occur in BUNIT but not in astropy's vocabulary, which knows one
# capitalisation of each.
_UNIT_WORDS = {
    "adu": "adu",
    "adus": "adu",
    "count": "ct",
    "counts": "ct",
    "cts": "ct",
    "dn": "DN",
    "e-": "electron",
    "electron": "electron",
    "electrons": "electron",
    "s": "s",
    "sec": "s",
    "second": "s",
    "seconds": "s",
}


@contextlib.contextmanager
def quiet_astropy() -> Iterator[None]:
    """Hush astropy's warnings and its log, part of which goes to standard output."""
    from astropy import log

    level = log.level
    log.setLevel("ERROR")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def one_line(error: BaseException | str, length: int = 160) -> str:
    """Text of an error as one line of at most ``length`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else text[: length - 1] + "…"


def clean_header(header: "fits.Header") -> tuple["fits.Header", list[str]]:
    """Copy the cards that keep, or can be made to keep, the FITS standard.

    Returns
    -------
    header : fits.Header
        A value that FITS cannot hold, such as infinity, is left undefined.
    dropped : list of str
        Keywords of the cards that lost their value or were left out.
    """
    from astropy.io import fits

    cleaned = fits.Header()
    dropped = []
    for card in header.cards:
        try:
            card.verify("silentfix")
            # The value is parsed when it is first asked for.
            cleaned.append(fits.Card(card.keyword, card.value, card.comment), end=True)
        except (fits.VerifyError, ValueError, TypeError):
            dropped.append(one_line(card.keyword, 20))
            with contextlib.suppress(ValueError):
                cleaned.append(fits.Card(card.keyword, None), end=True)
    return cleaned, dropped


def header_number(header: "fits.Header", name: str) -> float | None:
    """Return a card's value if it is a finite number, else ``None``."""
    value = header.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def ascii_text(text: str) -> str:
    """Printable ASCII for a header: accents go, anything else becomes an escape."""
    plain = unicodedata.normalize("NFKD", " ".join(text.split()))
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return plain.encode("ascii", "backslashreplace").decode("ascii")


def add_cards(
    header: "fits.Header",
    cards: Mapping[str, tuple[CardValue, str]],
    history: Sequence[str] = (),
) -> None:
    """Add cards and HISTORY lines; what FITS cannot hold is made to fit.

    Parameters
    ----------
    header : fits.Header
        Changed in place.
    cards : mapping
        Keyword to ``(value, comment)``.
    history : sequence of str
        One or more HISTORY cards each.
    """
    from astropy.io import fits

    with quiet_astropy():  # Astropy warns of keywords of more than eight letters.
        for name, (value, comment) in cards.items():
            if isinstance(value, str):
                value = ascii_text(value)
            elif value is not None and not math.isfinite(value):
                value = None
            # A comment that does not fit is cut here: astropy would do so with a warning.
            room = 80 - len(fits.Card(name, value).image.rstrip()) - len(" / ")
            text = ascii_text(comment)
            header[name] = (value, text[: max(0, room)])
    for line in history:
        header.add_history(ascii_text(line))


def parse_unit(text: str) -> "UnitBase | None":
    """Read a BUNIT.

    Returns
    -------
    astropy unit or None
        ``None`` for an empty or unknown unit. Common words for counts are understood in any
        capitalisation: ``ADU``, ``ELECTRONS/S``, ``counts``, ``DN``.
    """
    from astropy import units

    words = re.sub(
        r"e-(?![\w.+-])|[A-Za-z]+", lambda found: _UNIT_WORDS.get(found[0].lower(), found[0]), text
    )
    if not text.strip():
        return None
    with quiet_astropy():
        for spelling in (text, words):
            try:
                unit = units.Unit(spelling.strip(), parse_strict="silent")
                # Absurd powers are found out only when astropy looks at the scale.
                unit.decompose()
            except (ValueError, TypeError, ArithmeticError):
                continue
            if not isinstance(unit, units.UnrecognizedUnit):
                return unit
    return None


def knows_unit(unit: Any, dialect: str) -> bool:
    """Whether a dialect of astropy's (``"fits"``, ``"vounit"``) can write a unit."""
    with quiet_astropy():
        try:
            unit.to_string(dialect)
        except (ValueError, TypeError):
            return False
    return True
