"""Pictures in commands' outputs are drawn small: how they look is tested in `report`."""

import pytest


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setattr("damcli.report.plots.DPI", 20)
