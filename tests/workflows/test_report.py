"""The HTML reports: what is in them, that nothing breaks out of them, that a browser shows them."""

import html
import re
import types
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from matplotlib.image import imread

from galsep.config import DeblendConfig, EvaluateConfig, SimulateConfig
from galsep.flags import Flag
from galsep.io.atomic import partial_files
from galsep.workflows.evaluate import evaluate
from galsep.workflows.files import deblend_files
from galsep.workflows.finding import STATUSES
from galsep.workflows.report import shown_title
from galsep.workflows.simulate import simulate

EVIL = "\"><script>alert('1')</script>&"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports of a field with a hole, in a file with markup for a name, and of an empty one."""
    folder = tmp_path_factory.mktemp("reports")
    config = SimulateConfig(field="200x160", galaxies="2-3", density=60.0, seed=5, workers=1)
    simulate(folder / "field", config)
    data, header = fits.getdata(folder / "field" / "field_i.fits", header=True)
    data[100:110, 30:60] = np.nan
    header["EXTNAME"] = EVIL[:60]
    header["BUNIT"] = "<b>adu</b>"
    header["OBJECT"] = header["TELESCOP"] = header["FILTER"] = EVIL
    name = "<i>a&b'\n<script>\""
    fits.writeto(folder / f"{name}.fits", data, header)
    rng = np.random.default_rng(0)
    fits.writeto(folder / "empty.fits", rng.normal(size=(70, 90)).astype("f4"))
    settings = DeblendConfig(device="cpu", report=True, weights="")
    done = deblend_files(
        [folder / f"{name}.fits", folder / "empty.fits"],
        folder / "out",
        settings,
        command="galsep deblend IMAGE... --report",
    )
    assert [one.error for one in done] == [None, None]
    full, empty = folder / "out" / f"{name}_report.html", folder / "out" / "empty_report.html"
    assert full in done[0].files
    return full, empty, done[0].catalog


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """Report on three pairs."""
    folder = tmp_path_factory.mktemp("evaluation")
    simulate(folder / "<pairs>", SimulateConfig(n=60, workers=1))
    config = EvaluateConfig(device="cpu", baselines=False, workers=1)
    result = evaluate(folder / "<pairs>", folder / "report", config)
    assert folder / "report" / "report.html" in result.files
    return folder / "report" / "report.html", result.metrics


def test_every_source_has_an_outline_and_a_tip(pages):
    full, _, catalog = pages
    text = full.read_text()
    tips = [html.unescape(tip) for tip in re.findall(r'data-tip="([^"]*)"', text)]
    assert len(tips) == len(catalog)
    scores = {line.split()[-1] for tip in tips for line in tip.splitlines() if "score" in line}
    assert scores == {f"{score:.2f}" for score in catalog["score"]}
    assert any("masked_pixels" in tip for tip in tips) == bool((catalog["flags"] & 8).any())


def test_blends_are_shown_the_most_blended_first(pages):
    full, _, catalog = pages
    text = full.read_text()
    titles = re.findall(r"<h3>SEP detection (\d+)</h3>", text)
    several = {int(parent) for parent in catalog["parent"][catalog["parent_n_child"] > 1]}
    assert {int(title) for title in titles} == several
    worst = [max(catalog["blendedness"][catalog["parent"] == int(title)]) for title in titles]
    assert worst == sorted(worst, reverse=True)
    # In the table below a blend, each source has the colour of its outline.
    rows = re.findall(r'<td data-name="label"><span class="dot" style="background: (#\w+)">', text)
    assert len(rows) >= 2 * len(several)
    assert set(rows) <= set(re.findall(r'<path d="[^"]*" stroke="(#\w+)"', text))
    assert several


def test_settings_versions_and_what_was_masked(pages):
    text = pages[0].read_text()
    assert f"sha256:{pages[2].meta['WEIGHTS'][:16]}" in text
    assert "galsep deblend &lt;i&gt;a&amp;b&#39;" in text
    assert "300 pixels (0.938 %) hold no valid data" in text
    # Neither machines nor folders.
    assert str(pages[0].parent.parent) not in text
    assert "batch_size" not in text


def test_nothing_of_an_input_is_markup(pages):
    text = pages[0].read_text()
    assert "<i>a&b'" not in text
    assert "<b>adu" not in text
    assert "alert('1')" not in text
    # Those of the page itself alone.
    assert text.lower().count("<script") == pages[1].read_text().lower().count("<script")
    assert "&lt;script&gt;alert" in text.lower()


def test_equal_inputs_give_equal_pages(pages, tmp_path):
    image = pages[1].parent.parent / "empty.fits"
    config = DeblendConfig(device="cpu", report=True)
    deblend_files([image], tmp_path, config, command="galsep deblend IMAGE... --report")
    assert (tmp_path / "empty_report.html").read_bytes() == pages[1].read_bytes()


def test_a_call_that_is_killed_while_it_writes_a_page_leaves_what_is_tidied_up(
    pages, tmp_path, monkeypatch
):
    target, names = tmp_path / "empty_report.html", []
    write = Path.write_text

    def seen(self, *args, **kwargs):
        write(self, *args, **kwargs)
        left = list(tmp_path.glob(".*.html"))
        assert partial_files([target]) == {target: left}
        names.extend(left)

    monkeypatch.setattr(Path, "write_text", seen)
    image = pages[1].parent.parent / "empty.fits"
    deblend_files([image], tmp_path, DeblendConfig(device="cpu", report=True))
    assert target.exists()
    assert len(names) == 1


def test_nothing_is_loaded_from_elsewhere(pages, evaluation):
    for page in (*pages[:2], evaluation[0]):
        text = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page.read_text())
        assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
        assert "default-src 'none'" in text


TRY = """
  const field = document.querySelector(".field svg"), before = field.getAttribute("viewBox");
  document.querySelector('[data-act="in"]').click();
  document.body.dataset.zoomed = field.getAttribute("viewBox") !== before;
  const words = [...document.querySelectorAll(".mouse, .touch")];
  const read = words.filter((one) => getComputedStyle(one).display !== "none");
  document.body.dataset.words = read.map((one) => one.className).join(" ");
  const source = document.querySelector(".source");
  if (source) {
    source.dispatchEvent(new PointerEvent("pointermove", { bubbles: true }));
    const tip = document.querySelector(".tip");
    document.body.dataset.told = !tip.hidden && tip.textContent === source.dataset.tip;
    document.querySelector("[data-window]").click();
    document.body.dataset.focus = field.getAttribute("viewBox");
  }
"""


TAP = """
  const field = document.querySelector(".field svg"), tip = document.querySelector(".tip");
  const finger = (name, x, y) => field.dispatchEvent(new PointerEvent(name, {
    bubbles: true, pointerType: "touch", pointerId: 7, clientX: x, clientY: y,
  }));
  const boxes = [...document.querySelectorAll(".source")].map((one) => one.getBoundingClientRect());
  const { right, top, height } = boxes.find(({ width }) => width < 20);
  finger("pointerdown", right + 4, top + height / 2);
  finger("pointerleave", right + 4, top + height / 2);
  document.body.dataset.tapped = !tip.hidden && tip.textContent.includes("score");
  document.querySelector('[data-act="in"]').click();
  document.body.dataset.moved = tip.hidden;
"""


def test_a_tap_beside_a_source_tells_its_score_until_the_field_moves(pages, browse):
    shown = browse(pages[0], 400, TAP)
    assert shown.errors == []
    assert shown.data("tapped") == "true"
    assert shown.data("moved") == "true"


def test_what_the_words_mean_is_told(pages):
    text = pages[0].read_text()
    for flag in Flag:
        assert f"<small>{html.escape(flag.description).replace('&#x27;', '&#39;')}</small>" in text
    for status in STATUSES:
        assert re.search(rf'scope="row">{status}<small>\w+', text)
    assert "<td>no</td>" in text
    assert not re.search(r"<td>(True|False|\(\)|0)</td>", text[text.index('id="settings"') :])


CUT = """
  const tables = [...document.querySelectorAll(".wide")];
  for (const one of document.querySelectorAll("details")) one.open = true;
  const cut = tables.filter((one) => one.scrollWidth > one.clientWidth);
  document.body.dataset.tables = tables.length;
  document.body.dataset.cut = cut.length;
"""


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it(pages, browse, width):
    shown = browse(pages[0], width, TRY)
    assert shown.errors == []
    assert int(shown.data("pictures")) > 5
    assert shown.data("broken") == ""
    assert int(shown.data("wider")) <= 0
    assert shown.data("zoomed") == "true"
    assert shown.data("told") == "true"
    # Without a touch screen the words are those for a mouse.
    assert shown.data("words") == "mouse"
    assert float(shown.data("focus").split()[2]) < 200
    picture = imread(shown.screenshot)
    assert picture.shape[1] == width
    assert picture[..., :3].std() > 0.05


def test_a_browser_shows_an_empty_one(pages, browse):
    shown = browse(pages[1], 400, TRY)
    assert shown.errors == []
    assert shown.data("broken") == ""
    assert shown.data("zoomed") == "true"
    assert "No SEP detection became several sources" in shown.dom


def test_an_evaluation(evaluation):
    page, metrics = evaluation
    text = page.read_text()
    assert "&lt;pairs&gt;" in text
    assert "<pairs>" not in text
    assert f"{metrics['methods']['galsep']['detectable']['centroid5']['f1']:.3f}" in text
    assert metrics["weights_sha256"][:16] in text
    assert "truth dashed" in text
    assert text.index("Failures</h2>") < text.index("Successes</h2>")
    # What stands in the tables' headings and rows is explained above them.
    told = text[text.index('id="tables"') : text.index("<table")]
    for term in ("IoU", "exact blend", "levels and a contrast", "Flux error and bias"):
        assert term in told


def test_a_browser_shows_an_evaluation(evaluation, browse):
    for width in (1280, 400):
        shown = browse(evaluation[0], width, CUT)
        assert int(shown.data("tables")) >= 4
        assert shown.data("cut") == "0"
        assert shown.errors == []
        assert shown.data("broken") == ""
        assert int(shown.data("pictures")) > 5
        assert int(shown.data("wider")) <= 0


def test_the_image_is_described(pages):
    text, empty = (page.read_text() for page in pages[:2])
    assert re.search(r'scope="row">centre, ICRS</th><td>ra \d+\.\d{5}°, dec [+-]', text)
    assert 'scope="row">pixel scale</th><td>0.2″' in text
    assert 'scope="row">sky coordinates</th><td>none' in empty
    assert "score (dashed: threshold 0." in text


def test_fluxes_in_each_band_are_told(pages, tmp_path):
    image = next(pages[0].parent.parent.glob("*a&b*.fits"))
    config = DeblendConfig(device="cpu", report=True, band=(f"g={image}", f"r={image}"))
    (done,) = deblend_files([], tmp_path, config)
    text = (tmp_path / f"{image.stem}_report.html").read_text()
    tip = re.search(r'data-tip="([^"]*)"', text)[1]
    row = {name: done.catalog[name][int(tip.split()[1]) - 1] for name in done.catalog.colnames}
    assert f"deblend_flux_g {row['deblend_flux_g']:.4g}\n" in tip
    assert f"deblend_flux_r {row['deblend_flux_r']:.4g}\n" in tip
    assert f"class_star {row['class_star']:.2f}\n" in tip
    assert "_err" not in tip


def test_the_title_names_the_colours():
    grey, colour = (types.SimpleNamespace(bands=dict.fromkeys(names)) for names in ("gr", "grz"))
    assert shown_title("sky.fits", types.SimpleNamespace(bands={})) == "sky.fits"
    assert shown_title("sky.fits", grey) == "sky.fits: bands g, r"
    assert shown_title("sky.fits", colour) == "sky.fits: bands g, r, z as blue, green, red"
