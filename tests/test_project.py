"""With no path a command takes the newest, and says so where there is nothing or two equals."""

import os

import pytest

from damcli import project
from damcli.errors import UsageError

FINDERS = {
    project.newest_dataset: ("data/{}/dataset.json", "prepare"),
    project.newest_run: ("runs/{}/config.toml", "train"),
    project.newest_model: ("models/{}.onnx", "export"),
}


@pytest.mark.parametrize("finder", FINDERS)
def test_the_newest_is_taken_and_nothing_or_a_tie_is_said(finder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pattern, maker = FINDERS[finder]
    with pytest.raises(UsageError) as nothing:
        finder()
    assert f"damcli {maker}" in nothing.value.fix
    for number, name in enumerate(("one", "two")):
        path = tmp_path / pattern.format(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1000 + number, 1000 + number))
    draft = tmp_path / pattern.format(".two.tmp")  # of a writer that was killed
    draft.parent.mkdir(parents=True, exist_ok=True)
    draft.touch()
    assert finder().stem == "two"
    os.utime(tmp_path / pattern.format("one"), (1001, 1001))
    with pytest.raises(UsageError) as tie:
        finder()
    assert "one" in tie.value.what
    assert "two" in tie.value.what
