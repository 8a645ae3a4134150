"""Fixtures for the whole suite."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

# Tensors are small here, and tests share the cores: more threads only wait for one another. And runs that are compared
# to the bit need the same number. Read when torch is loaded, here and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import numpy as np
import pytest

hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

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
    # So that no test makes one in that person's settings.
    monkeypatch.setenv("DAMCLI_SECRET", "a secret of the tests")


@pytest.fixture
def run_here(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Returns `run_here(*arguments)`: the exit code, stdout and stderr of that command line in this process."""
    from damcli.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                main([str(argument) for argument in arguments])
        finally:
            signal.signal(signal.SIGTERM, handler)
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


@pytest.fixture(scope="session")
def make_toy() -> Callable[..., Path]:
    """Returns `make(path, scans=240, size=32, seed=0, positives=0.3, blank=0.0, folds=None)`: easy to learn.

    A scan of noise has a bright square on the left for Edema and on the right for Fracture; 3 scans a patient, the
    last quarter of the patients in `valid`, or with `folds` fold 0; `blank` is the share of missing labels.
    """

    def make(
        path: Path,
        scans: int = 240,
        size: int = 32,
        seed: int = 0,
        positives: float = 0.3,
        blank: float = 0.0,
        folds: int | None = None,
    ) -> Path:
        import polars as pl

        from damcli.data import parts
        from damcli.data.images import Contract
        from damcli.data.labels import Policy
        from damcli.data.sources import Source
        from damcli.data.workers import Decoded
        from damcli.data.writer import write

        findings = ["Edema", "Fracture"]
        rng = np.random.default_rng(seed)
        present = rng.random((scans, 2)) < positives
        images = rng.integers(0, 120, (scans, size, size)).astype(np.uint8)
        images[present[:, 0], size // 4 : size // 2, : size // 3] += 90
        images[present[:, 1], size // 2 :, -size // 3 :] += 90
        labels = np.where(rng.random((scans, 2)) < blank, np.nan, present)
        numbers = np.arange(scans)
        table = pl.DataFrame(
            {
                "id": [f"scan{n:04}.png" for n in numbers],
                "path": [f"/absent/scan{n:04}.png" for n in numbers],
                "patient": [f"patient{n // 3:04}" for n in numbers],
                "study": [f"study{n:04}" for n in numbers],
                "view": ["frontal"] * scans,
                "split": ["train" if n // 3 < scans // 4 else "valid" for n in numbers],
            }
        ).with_columns(pl.Series(f"label:{name}", labels[:, k]).fill_nan(None) for k, name in enumerate(findings))
        policies = {name: Policy(uncertain="ignore", blank="missing") for name in findings}
        if folds:
            table = table.with_columns(pl.lit(None, pl.String).alias("split"))
        source = Source("toy", path.parent, table, findings, policies, [])
        source = parts.assign(source, None, folds, seed) if folds else source

        def decode(paths):
            for number, _ in enumerate(paths):
                yield Decoded(number, images[number], "ok", "")

        for _ in write(path, source, Contract(size=size, channels=1), decode):
            pass
        return path

    return make


@pytest.fixture(scope="session")
def toy(make_toy: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dataset that is easy to learn; read it only."""
    return make_toy(tmp_path_factory.mktemp("toy") / "dataset")
