"""`damcli info models`: the recipes at hand with their forms and cards, and the models under models/."""

import json
from pathlib import Path

import pytest

from damcli import recipes
from damcli.cli import main


def test_recipes_are_listed_with_forms_and_cards_and_a_broken_model_with_its_problem(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/broken.onnx").write_bytes(b"nothing")
    with pytest.raises(SystemExit) as end:
        main(["info", "models", "--json"])
    assert not end.value.code
    shown = json.loads(capsys.readouterr().out)
    listed = {row["recipe"]: row for row in shown["recipes"]}
    assert list(listed) == recipes.names()
    assert listed["melanoma"]["forms"] == ["ce", "ci", "focal", "metadata"]
    assert all(row["description"] and Path(row["card"]).is_file() for row in listed.values())
    [model] = shown["models"]
    assert model["model"] == "models/broken.onnx"
    assert model["problem"]
