"""Fixtures for the whole suite."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real scans: `DAMCLI_TEST_DATA`, else the one beside the project; skips where there is none."""
    folder = Path(os.environ.get("DAMCLI_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "README.txt").is_file():
        pytest.skip(f"real scans are not at hand: set DAMCLI_TEST_DATA (looked in {folder})")
    return folder


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the suite reaches a test."""
    for name in list(os.environ):
        if name.startswith("DAMCLI_") and name != "DAMCLI_TEST_DATA":
            monkeypatch.delenv(name)
