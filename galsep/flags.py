"""The catalogue's own bit flags: the one registry of their values, names and meanings."""

from enum import IntFlag

__all__ = ["Flag"]


class Flag(IntFlag):
    """What the bits of the catalogue's column ``flags`` say; 0 means nothing to report.

    Attributes
    ----------
    description : str
        One line for headers and documentation.
    """

    description: str

    def __new__(cls, value: int, description: str = "") -> "Flag":
        """Make a member of a value and its description."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.description = description
        return member

    NETWORK_MISSED = 1, "found by SEP alone: no network source there"
    LARGER_THAN_CUTOUT = 2, "larger than a cutout: told by its symmetry"
    IMAGE_EDGE = 4, "touches the edge of the image"
    MASKED_PIXELS = 8, "holds or touches pixels without valid data"
    OVERLAPS = 16, "shares pixels with another source"
    OUT_OF_DOMAIN = 32, "PSF unlike those the network was trained on"

    @classmethod
    def legend(cls) -> dict[str, int]:
        """Bit of each flag by its lower-case name."""
        return {flag.name.lower(): flag.value for flag in cls if flag.name}
