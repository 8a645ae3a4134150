"""The toy figure: what it shows is what was drawn and trained, again and again the same."""

import json
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from damcli.cli import main
from damcli.commands.reproduce.figure1 import draw as draw_picture
from damcli.reproduce import figure1
from damcli.reproduce.figure1 import Settings

TINY = replace(Settings(), scans=30, easy=10, noisy=6, steps=60, pretraining_steps=120, tested=300, grid=21)


@pytest.fixture(scope="module")
def panels():
    return list(figure1.panels(TINY, seed=0))


def test_six_panels_that_begin_at_the_same_boundary(panels):
    assert [(p.loss, p.data) for p in panels] == [(loss, data) for loss in figure1.LOSSES for data in figure1.SETS]
    first = [p for p in panels if p.data == "clean"]
    assert np.array_equal(first[0].surface, first[1].surface)
    assert first[0].moved == 0
    assert first[0].auroc.value > 0.85  # it has learnt
    for panel in panels:
        assert panel.moved == np.mean((panel.surface > 0) != (first[0].surface > 0))
        assert panel.auroc.low < panel.auroc.value < panel.auroc.high
    assert all(p.moved > 0 for p in panels if p.data == "noisy")


def test_the_losses_differ_where_the_margin_is_reachable_and_are_one_where_it_is_not():
    surfaces = {
        margin: [p.surface for p in figure1.panels(replace(TINY, margin=margin), 0) if p.data == "noisy"]
        for margin in (0.3, 1.0)
    }
    assert np.array_equal(*surfaces[1.0])
    assert not np.allclose(*surfaces[0.3])


def test_what_is_added_is_easy_or_mislabelled(panels):
    drawn = {p.data: p for p in panels}
    clean, easy, noisy = (drawn[data] for data in figure1.SETS)
    for panel in (easy, noisy):
        assert np.array_equal(panel.points[~panel.added], clean.points)
    assert easy.added.sum() == 20
    side = easy.points[easy.added] @ np.array(TINY.easy_at) > 0
    assert np.array_equal(side, easy.labels[easy.added])
    assert not noisy.labels[noisy.added].any()
    assert (noisy.points[noisy.added][:, 0] > 0).all()  # deep among the positives


def test_a_seed_makes_one_figure(panels):
    again = list(figure1.panels(TINY, seed=0))
    assert all(np.array_equal(a.surface, b.surface) for a, b in zip(panels, again, strict=True))
    other = list(figure1.panels(TINY, seed=1))
    assert not np.array_equal(panels[1].surface, other[1].surface)


def test_the_auroc_is_that_of_the_held_out_points():
    truth, points = figure1._held_out(TINY, 0)
    network = figure1._pretrained(TINY, 0)
    [first, *_] = figure1.panels(TINY, 0)
    assert first.auroc.value == pytest.approx(roc_auc_score(truth, figure1._logits(network, points)))


def test_picture_and_figures(panels, tmp_path):
    draw_picture(panels, TINY.extent, tmp_path / "figure1.png")
    picture = matplotlib.image.imread(tmp_path / "figure1.png")
    assert picture.shape[1] > 1.3 * picture.shape[0]  # three columns, two rows
    third, half = picture.shape[1] // 3, picture.shape[0] // 2
    for row in range(2):
        for column in range(3):
            cell = picture[row * half : (row + 1) * half, column * third : (column + 1) * third, :3]
            assert cell.min() < 0.2 < 0.9 < cell.max()  # drawn on, and on white


def test_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(figure1, "Settings", lambda: TINY)
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "figure1", "-o", str(tmp_path), "--seed", "2", "--json"])
    assert not ended.value.code
    document = json.loads(capsys.readouterr().out)
    assert document["seed"] == 2
    assert len(document["panels"]) == 6
    assert json.loads((tmp_path / "figure1.json").read_text())["panels"] == document["panels"]
    assert (tmp_path / "figure1.png").is_file()
