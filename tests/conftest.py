"""What all tests share: the folder of real images and catalogues, where there is one."""

import os
import signal
from pathlib import Path

import pytest

# A shell starts what it puts in the background with SIGINT ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder named by GALSEP_TEST_DATA; tests that ask for it are skipped where it is unset."""
    folder = os.environ.get("GALSEP_TEST_DATA", "")
    if not folder:
        pytest.skip("GALSEP_TEST_DATA is not set")
    return Path(folder)
