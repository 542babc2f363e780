"""What all tests share: the folder of real images and catalogues, where there is one."""

import importlib.util
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# A shell starts what it puts in the background with SIGINT ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# As the command line does, before torch is loaded: threads that wait would keep cores busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder named by GALSEP_TEST_DATA; tests that ask for it are skipped where it is unset."""
    folder = os.environ.get("GALSEP_TEST_DATA", "")
    if not folder:
        pytest.skip("GALSEP_TEST_DATA is not set")
    return Path(folder)


CLUSTER = """
import sys
import tempfile
from distributed import LocalCluster

if __name__ == "__main__":
    with LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address=":0"
    ) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[str]:
    """Address of a Dask cluster of two processes; skips where Dask is not installed."""
    if importlib.util.find_spec("distributed") is None:
        pytest.skip("distributed is not installed")
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "cluster.py").write_text(CLUSTER)
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, folder / "cluster.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder,
        ) as running,
    ):  # fmt: skip
        address = running.stdout.readline().strip()
        assert address, (folder / "log").read_text()
        yield address
        running.stdin.close()


@pytest.fixture(scope="session")
def forked() -> Callable[..., multiprocessing.Process]:
    """Start processes that run a text of Python; what training needs is loaded there already."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs processes that fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "galsep.workflows.train",
            "galsep.plot.training",
            "photutils.segmentation",
            "torch._dynamo",
        ]
    )

    def start(source: str, **names: object) -> multiprocessing.Process:
        process = context.Process(target=exec, args=(source, names))
        process.start()
        return process

    return start


CHECK = """
<script>
addEventListener("load", async () => {
  const broken = [], pictures = [...document.querySelectorAll("img, image")];
  for (const one of pictures) {
    const copy = new Image();
    const loaded = new Promise((done) => { copy.onload = copy.onerror = done; });
    copy.src = one.getAttribute("src") ?? one.getAttribute("href");
    await loaded;
    if (!copy.naturalWidth) broken.push(copy.src.slice(0, 60));
  }
  document.body.dataset.pictures = pictures.length;
  document.body.dataset.broken = broken.join(" ");
  document.body.dataset.wider = document.documentElement.scrollWidth - innerWidth;
  __MORE__
});
</script>
"""


@dataclass(frozen=True)
class Shown:
    """A page as a browser shows it."""

    dom: str
    errors: list[str]
    screenshot: Path

    def data(self, name: str) -> str:
        """What a script left in the body's data-NAME."""
        return re.search(f'data-{name}="([^"]*)"', self.dom)[1]


@pytest.fixture(scope="session")
def browse(tmp_path_factory) -> Callable[..., Shown]:
    """Show a page in headless Chromium; tests that ask for it are skipped where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("there is no Chromium")

    def show(page: Path, width: int = 1280, script: str = "") -> Shown:
        folder = tmp_path_factory.mktemp("browser")
        copy = folder / "page.html"
        copy.write_text(page.read_text(encoding="utf-8") + CHECK.replace("__MORE__", script))
        screenshot = folder / "page.png"
        # The profile takes more room than all pages.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            done = subprocess.run(
                [
                    program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                    "--enable-logging=stderr", "--virtual-time-budget=20000",
                    f"--user-data-dir={profile}", f"--window-size={width},1600",
                    f"--screenshot={screenshot}", "--dump-dom", copy.as_uri(),
                ],
                capture_output=True, text=True, timeout=300,
            )  # fmt: skip
        console = re.findall(r"INFO:CONSOLE.*", done.stderr)
        return Shown(done.stdout, console, screenshot)

    return show
