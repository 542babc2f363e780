"""FITS files of many kinds, and ways to spoil them.

An input is a function of a seed and a number alone, so that one that fails can be made again.
"""

import bz2
import functools
import gzip
import io
import itertools
import lzma
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from astropy.io import fits

from galsep.io.header import quiet_astropy

__all__ = ["Sample", "sample", "samples", "spoilt"]

BLOCK, CARD = 2880, 80


@dataclass(frozen=True)
class Sample:
    """A FITS file and where its headers and its data lie."""

    name: str
    content: bytes
    headers: tuple[tuple[int, int], ...] = ()
    data: tuple[tuple[int, int], ...] = ()


def sample(name: str, *hdus: fits.hdu.base.ExtensionHDU, checksum: bool = False) -> Sample:
    """Make a file of HDUs."""
    file = io.BytesIO()
    with quiet_astropy():
        fits.HDUList(list(hdus)).writeto(file, checksum=checksum)
        content = file.getvalue()
        with fits.open(io.BytesIO(content), disable_image_compression=True) as stored:
            places = [hdu.fileinfo() for hdu in stored]
    headers = tuple((place["hdrLoc"], place["datLoc"]) for place in places)
    data = tuple((p["datLoc"], p["datLoc"] + p["datSpan"]) for p in places if p["datSpan"])
    return Sample(name, content, headers, data)


@functools.cache
def samples() -> tuple[Sample, ...]:
    """Sound files of all kinds that galsep reads, and of some that it refuses."""
    rng = np.random.default_rng(8)
    y, x = np.indices((40, 48))
    image = rng.normal(size=(40, 48))
    for y0, x0 in ((12, 14), (17, 20), (30, 38)):
        image += 30 * np.exp(-((y - y0) ** 2 + (x - x0) ** 2) / 9)
    single = image.astype(np.float32)
    short = np.clip(image * 20 + 100, 0, 3000).astype(np.int16)
    sky = _sky()
    plain = fits.PrimaryHDU(single, sky)
    scaled = fits.PrimaryHDU(short, sky)
    scaled.header.update(BSCALE=0.05, BZERO=-5.0, BLANK=-32768, BUNIT="adu", GAIN=1.5)
    rough = fits.PrimaryHDU(short.astype(np.uint16))
    cube = fits.PrimaryHDU(single[None, None])
    sip = fits.PrimaryHDU(single, _sky("RA---TAN-SIP", "DEC--TAN-SIP"))
    sip.header.update(A_ORDER=2, B_ORDER=2, A_2_0=1e-6, B_0_2=1e-6, A_1_1=2e-6)
    tpv = fits.PrimaryHDU(single, _sky("RA---TPV", "DEC--TPV"))
    tpv.header.update(PV1_0=0.0, PV1_1=1.0, PV1_4=1e-4, PV2_1=1.0, PV2_4=-1e-4)
    planes = [
        fits.PrimaryHDU(),
        fits.ImageHDU(single, sky, name="SCI"),
        fits.ImageHDU(np.ones_like(single), name="ERR"),
        fits.ImageHDU((single > 20).astype(np.uint8), name="DQ"),
    ]
    planes[3].header["MP_SAT"] = 0
    table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=np.arange(9))])
    words = fits.TableHDU.from_columns([fits.Column("b", "A8", array=["one", "two"])])
    groups = fits.GroupsHDU(
        fits.GroupData(image[None, :8, :8], bitpix=-32, parnames=["a"], pardata=[0.0])
    )
    return (
        sample("plain", plain),
        sample("double", fits.PrimaryHDU(image, sky), checksum=True),
        sample("scaled", scaled),
        sample("unsigned", rough, checksum=True),
        sample("long", fits.PrimaryHDU(short.astype(np.int64))),
        sample("cube", cube),
        sample("sip", sip),
        sample("tpv", tpv),
        sample("planes", *planes),
        sample("several", fits.PrimaryHDU(), fits.ImageHDU(single), fits.ImageHDU(short, sky)),
        sample("tables", fits.PrimaryHDU(single[:9]), table, words),
        sample("groups", groups),
        *(
            sample(
                f"{kind.lower()}{'-summed' * summed}",
                fits.PrimaryHDU(),
                fits.CompImageHDU(pixels, sky, compression_type=kind, tile_shape=tile),
                checksum=summed,
            )
            for kind, pixels, tile in (
                ("RICE_1", short, (1, 48)),
                ("RICE_1", single, (8, 48)),
                ("GZIP_1", single, (1, 48)),
                ("GZIP_2", short, (8, 16)),
                ("HCOMPRESS_1", short, (20, 24)),
                ("PLIO_1", short, (40, 48)),
            )
            for summed in (False, True)
        ),
    )


def _sky(*kinds: str) -> fits.Header:
    header = fits.Header()
    for axis, kind in enumerate(kinds or ("RA---TAN", "DEC--TAN"), start=1):
        header[f"CTYPE{axis}"] = kind
        header[f"CRPIX{axis}"] = 20.5
        header[f"CRVAL{axis}"] = 150.0 / axis**2
        header[f"CD{axis}_{axis}"] = 5e-5
        header[f"CD{axis}_{3 - axis}"] = 1e-6
        header[f"CUNIT{axis}"] = "deg"
    return header


def spoilt(seed: int, number: int) -> Sample:
    """Spoil one of the samples in one to four ways."""
    rng = np.random.default_rng([seed, number])
    chosen = samples()[rng.integers(len(samples()))]
    for _ in range(rng.integers(1, 5)):
        chosen = _WAYS[rng.integers(len(_WAYS))](rng, chosen)
    if rng.random() < 0.15:
        chosen = _packed(rng, chosen)
    return chosen


Way = Callable[[np.random.Generator, Sample], Sample]

_KEYWORDS = """
    SIMPLE XTENSION BITPIX NAXIS NAXIS1 NAXIS1 NAXIS2 NAXIS2 NAXIS3 EXTEND PCOUNT GCOUNT GROUPS
    BSCALE BZERO BLANK BUNIT GAIN EGAIN EXTNAME EXTVER INHERIT DATASUM CHECKSUM UTYPE MP_SAT
    TFIELDS TFORM1 TFORM2 TTYPE1 TSCAL1 TZERO1 TNULL1 TDIM1 THEAP
    ZIMAGE ZCMPTYPE ZBITPIX ZNAXIS ZNAXIS1 ZNAXIS2 ZTILE1 ZTILE2 ZNAME1 ZVAL1 ZNAME2 ZVAL2
    ZQUANTIZ ZDITHER0 ZBLANK ZSCALE ZZERO ZPCOUNT ZGCOUNT ZSIMPLE ZEXTEND ZHECKSUM
    WCSAXES CTYPE1 CTYPE2 CUNIT1 CUNIT2 CRVAL1 CRVAL2 CRPIX1 CRPIX2 CDELT1 CDELT2 CROTA2
    CD1_1 CD1_2 CD2_1 CD2_2 PC1_1 PC2_2 PV1_1 PV2_1 PV1_99 LONPOLE LATPOLE RADESYS EQUINOX
    A_ORDER B_ORDER AP_ORDER A_0_2 A_9_9 CPDIS1 DP1 D2IMDIS1 TELESCOP FILTER OBJECT END
""".split()  # noqa: SIM905 (a list of one a line would be a page long)

_NUMBERS = """
    0 1 -1 2 3 4 7 8 16 32 64 -32 -64 -8 48 40 999 2147483647 2147483648 -2147483648
    9223372036854775807 9223372036854775808 100000 1000000000000 1E30 1e308 -1E308 1E999 1E-310
    0.0 0.5 -0.0 NAN INF -INF T F 1.5.2 (1.0,2.0) 0x10 1D5 -90.0 180.0 1E-40 3.4E38
""".split()  # noqa: SIM905

_WORDS = """
    ''|'text'|'IMAGE   '|'BINTABLE'|'RICE_1  '|'GZIP_2  '|'HCOMPRESS_1'|'PLIO_1  '|'NOCOMPRESS'
    |'SUBTRACTIVE_DITHER_2'|'RA---TAN'|'DEC--TAN'|'GLON-CAR'|'RA---TAN-SIP'|'FREQ    '
    |'1PB(9999999)'|'1QE(0)'|'999999999J'|'SCI'|'VARIANCE'|'MASK'|'unclosed|'it''s'
    |'<script>alert(1)</script>'|'\xe9\xff'|'a\tb'|
""".replace("\n    ", "").split("|")

_VALUES = (*_NUMBERS, *_WORDS)

_ODD_CARDS = (
    b"lower   = 5",
    b"NOEQUALS 5",
    b"        = 3",
    b"HIERARCH ESO DET CHIP1 = 'x' / long",
    b"CONTINUE  'without a start'",
    b"\x00\x01\x02\xff\xfe",
    b"COMMENT \xe9\xe8\xa0",
    b"KEY\tTAB = 1",
    b"LONGKEYWORD= 1",
    b"VALUE   =5",
    b"CRVAL1  = 1,5",
    b"DATE-OBS= 1992-02-30",
    b"END     x",
    b"=" * 80,
)


def _cards(chosen: Sample, rng: np.random.Generator) -> tuple[int, list[int]]:
    """Pick a header: the offset of its END card, and those of all before it."""
    start, stop = chosen.headers[rng.integers(len(chosen.headers))]
    places = range(start, min(stop, len(chosen.content) - CARD + 1), CARD)
    ends = [place for place in places if chosen.content[place : place + 8] == b"END     "]
    end = ends[0] if ends else max(start, min(stop, len(chosen.content)) - CARD)
    return end, list(range(start, end, CARD))


def _with(chosen: Sample, place: int, new: bytes) -> Sample:
    """Write over some bytes."""
    content = chosen.content
    return replace(chosen, content=content[:place] + new + content[place + len(new) :])


def _set_card(rng: np.random.Generator, chosen: Sample) -> Sample:
    keyword = _KEYWORDS[rng.integers(len(_KEYWORDS))]
    value = _VALUES[rng.integers(len(_VALUES))]
    new = f"{keyword:8}= {value:>20}".ljust(CARD)[:CARD].encode("latin-1")
    end, cards = _cards(chosen, rng)
    for place in cards:
        if chosen.content[place : place + 8] == new[:8]:
            return _with(chosen, place, new)
    # Where there is room in the last block, the end moves.
    if (end + CARD) % BLOCK:
        return _with(_with(chosen, end + CARD, b"END".ljust(CARD)), end, new)
    return _with(chosen, cards[-1], new) if cards else chosen


def _odd_card(rng: np.random.Generator, chosen: Sample) -> Sample:
    new = _ODD_CARDS[rng.integers(len(_ODD_CARDS))].ljust(CARD)[:CARD]
    end, cards = _cards(chosen, rng)
    if (end + CARD) % BLOCK and rng.random() < 0.7:
        return _with(_with(chosen, end + CARD, b"END".ljust(CARD)), end, new)
    return _with(chosen, int(rng.choice(cards or [end])), new)


def _lose_card(rng: np.random.Generator, chosen: Sample) -> Sample:
    _, cards = _cards(chosen, rng)
    return _with(chosen, int(rng.choice(cards)), bytes(b" " * CARD)) if cards else chosen


def _swap_cards(rng: np.random.Generator, chosen: Sample) -> Sample:
    _, cards = _cards(chosen, rng)
    if len(cards) < 2:
        return chosen
    one, two = (int(place) for place in rng.choice(cards, 2, replace=False))
    first, second = (chosen.content[place : place + CARD] for place in (one, two))
    chosen = _with(chosen, two, first)
    # Half the time the first stays, so that the card is there twice.
    return _with(chosen, one, second) if rng.random() < 0.5 else chosen


def _cut(rng: np.random.Generator, chosen: Sample) -> Sample:
    edges = [edge for span in (*chosen.headers, *chosen.data) for edge in span]
    place = int(rng.choice([*edges, int(rng.integers(len(chosen.content) + 1))]))
    place += int(rng.choice([0, 0, -1, 1, -CARD, CARD, 40, -BLOCK, BLOCK]))
    return replace(chosen, content=chosen.content[: max(0, place)])


def _flip(rng: np.random.Generator, chosen: Sample, spans: Sequence[tuple[int, int]]) -> Sample:
    if not spans or not chosen.content:
        return chosen
    start, stop = spans[rng.integers(len(spans))]
    stop = min(stop, len(chosen.content))
    for _ in range(int(rng.choice([1, 1, 2, 8, 100])) if start < stop else 0):
        place = int(rng.integers(start, stop))
        chosen = _with(chosen, place, bytes([chosen.content[place] ^ (1 << rng.integers(8))]))
    return chosen


def _flip_header(rng: np.random.Generator, chosen: Sample) -> Sample:
    return _flip(rng, chosen, chosen.headers)


def _flip_data(rng: np.random.Generator, chosen: Sample) -> Sample:
    return _flip(rng, chosen, chosen.data)


def _overwrite(rng: np.random.Generator, chosen: Sample) -> Sample:
    """Put a run of noise, zeros or ones anywhere."""
    if not chosen.content:
        return chosen
    place = int(rng.integers(len(chosen.content)))
    length = min(int(rng.choice([1, 80, 500, 2880, 20_000])), len(chosen.content) - place)
    fill = (rng.bytes(length), bytes(length), b"\xff" * length, b" " * length)
    return _with(chosen, place, fill[rng.integers(len(fill))])


_PIXELS = (np.nan, np.inf, -np.inf, 1e-310, 1e-42, 3e38, -3e38, 1e300, 0.0, -1.0)


def _odd_pixels(rng: np.random.Generator, chosen: Sample) -> Sample:
    """Write numbers that are none, or extreme, over a run of pixels, or all."""
    if not chosen.data:
        return chosen
    start, stop = chosen.data[rng.integers(len(chosen.data))]
    kind = (">f4", ">f8")[rng.integers(2)]
    with np.errstate(over="ignore"):
        one = np.array(_PIXELS[rng.integers(len(_PIXELS))]).astype(kind).tobytes()
    most = max(0, min(stop, len(chosen.content)) - start) // len(one)
    if not most:
        return chosen
    length = most if rng.random() < 0.3 else int(rng.integers(1, most + 1))
    first = int(rng.integers(0, most - length + 1))
    return _with(chosen, start + first * len(one), one * length)


def _shuffle_hdus(rng: np.random.Generator, chosen: Sample) -> Sample:
    """Repeat, drop or exchange HDUs; those of another file may follow."""
    starts = [start for start, _ in chosen.headers] + [len(chosen.content)]
    parts = [chosen.content[a:b] for a, b in itertools.pairwise(starts)]
    other = samples()[rng.integers(len(samples()))]
    pool = [*parts, other.content, rng.bytes(300), bytes(BLOCK)]
    keep = rng.permutation(len(parts))[: rng.integers(1, len(parts) + 1)]
    extra = rng.integers(len(pool), size=rng.integers(0, 3))
    content = b"".join([*(parts[i] for i in keep), *(pool[i] for i in extra)])
    inside = tuple(span for span in chosen.headers if span[1] <= len(content))
    return replace(chosen, content=content, headers=inside or ((0, len(content)),), data=())


def _packed(rng: np.random.Generator, chosen: Sample) -> Sample:
    """Compress as a whole, and perhaps spoil that, too."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("a.fits", chosen.content)
        if rng.random() < 0.3:
            zipped.writestr("b.fits", chosen.content)
    packers = (gzip.compress, gzip.compress, bz2.compress, lzma.compress)
    forms = [pack(chosen.content) for pack in packers] + [archive.getvalue()]
    content = forms[rng.integers(len(forms))]
    packed = Sample(chosen.name, content, data=((0, len(content)),))
    act = rng.random()
    if act < 0.4:
        return replace(packed, content=content[: rng.integers(len(content) + 1)])
    return _flip_data(rng, packed) if act < 0.7 else packed


_WAYS: tuple[Way, ...] = (
    _set_card,
    _set_card,
    _set_card,
    _set_card,
    _odd_card,
    _lose_card,
    _swap_cards,
    _cut,
    _flip_header,
    _flip_data,
    _overwrite,
    _odd_pixels,
    _shuffle_hdus,
)
