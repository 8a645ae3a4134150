"""Scoring on a cluster: the rows, bytes and heat maps of the local engine, with and without GPUs to lend."""

import dataclasses
import os
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_files

from damcli.bundle import heatmaps
from damcli.bundle.engines import OutOfMemory
from damcli.bundle.pipeline import Pipeline
from damcli.bundle.runtime import Model
from damcli.cluster import waves
from damcli.cluster.scoring import Scoring, _Opener
from damcli.cluster.session import session
from damcli.data import inputs
from damcli.errors import MachineError, UsageError

pytestmark = pytest.mark.distributed
FINDINGS = ["Edema", "Fracture"]
BATCH = 3


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Scans of every kind: good, damaged, none, in archives, regions, and pydicom's own."""
    folder = tmp_path_factory.mktemp("scans")
    for n in range(17):
        pixels = np.random.default_rng(n).integers(0, 256, (40, 30), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
    (folder / "1.png").write_text("path,sick\n")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:50])
    for file in sorted(get_testdata_files())[::4]:
        (folder / Path(file).name).symlink_to(file)
    with zipfile.ZipFile(folder / "some.zip", "w") as archive:
        for n in (3, 2, 4, 4):
            archive.write(folder / f"{n}.png", f"in/{n}.png")
    (folder / "cut.zip").write_bytes((folder / "some.zip").read_bytes()[:-30])
    with tarfile.open(folder / "some.tar", "w") as archive:
        archive.add(folder / "5.png", "5.png")
        archive.add(folder / "1.png", "1.png")
    paths = ["5.png", "6.png#xywh=2,3,20,20", "nowhere.png", "7.png"]
    (folder / "list.csv").write_text("path\n" + "".join(f'"{path}"\n' for path in paths))
    return folder


@pytest.fixture
def connected(two_nodes):
    with session(two_nodes.address) as found:
        yield found


def everything(scans):
    """Return the folder's inputs, and behind them those of the list."""
    return [*inputs.given([str(scans)]).find(), *inputs.given([str(scans / "list.csv")]).find()]


def here(model_file, batch=BATCH, **options):
    return Pipeline(Model.open(model_file, "cpu", threads=1), workers=1, batch=batch, **options)


def flat(lots):
    return [
        (one.name, one.stamp, one.refusal, row._replace(scores=None), row.scores is None or row.scores.tobytes())
        for lot in lots
        for one, row in zip(lot.inputs, lot.rows, strict=True)
    ]


def test_rows_ids_and_heat_maps_are_those_of_the_local_engine(connected, model_file, scans, tmp_path, monkeypatch):
    # Many waves, of a few scans each.
    monkeypatch.setattr(waves, "FIRST", 2)
    monkeypatch.setattr(waves, "WAVE", 4)
    found = everything(scans)
    table = {one.name: np.array([n / 10, 0], np.float32) for n, one in enumerate(found) if n % 3}

    def whose(one, scan):
        return f"{scan.status} {scan.patient}", f"{one.name} {scan.study}"

    def drawn(folder):
        return lambda one, pixels, cams: heatmaps.write(folder, one.name, FINDINGS, pixels, cams)

    local = here(model_file, metadata=table, whose=whose, draw=drawn(tmp_path / "here"))
    expected = flat(local.rows(iter(found)))
    assert {row.status for *_, row, _ in expected} == {"ok", "failed", "skipped"}
    assert any(row.patient not in ("ok ", "failed ", "skipped ") for *_, row, _ in expected)

    draw = drawn(tmp_path / "there")
    scoring = Scoring(connected, model_file, "cpu", batch=BATCH, metadata=table, whose=whose, draw=draw)
    assert flat(scoring.rows(iter(found))) == expected
    assert (scoring.provider, scoring.on_gpu, scoring.fell_back) == ("CPUExecutionProvider", False, False)
    assert (scoring.info, scoring.sha256) == (local.scorer.model.info, local.scorer.model.sha256)
    assert (scoring.actors, scoring.batch, scoring.most) == (2, BATCH, BATCH)
    maps = {file.relative_to(tmp_path / "here"): file.read_bytes() for file in (tmp_path / "here").rglob("*.png")}
    assert len(maps) == 2 * len({row.path for *_, row, _ in expected if row.status == "ok"})
    assert {f.relative_to(tmp_path / "there"): f.read_bytes() for f in (tmp_path / "there").rglob("*.png")} == maps


@pytest.mark.slow
def test_real_scans_have_the_bytes_of_the_local_engine(connected, model_file, test_data):
    found = list(inputs.given([str(test_data / "dicom"), str(test_data / "nih_cxr_64px")]).find())[:150]
    local = flat(here(model_file, batch=8).rows(iter(found)))
    assert sum(row.status == "ok" for *_, row, _ in local) > 100
    scoring = Scoring(connected, model_file, "cpu", batch=8)
    assert flat(scoring.rows(iter(found))) == local


@pytest.mark.slow
def test_gpus_are_fed_by_tasks_also_where_there_are_more_of_them_than_cpus(cluster, model_file, scans):
    cluster.add("--num-gpus=3", cpus=1)
    found = everything(scans)
    with session(cluster.address) as connected:
        assert (connected.cpus, connected.gpus) == (1, 3)
        scoring = Scoring(connected, model_file, batch=BATCH)
        # Ray was told of GPUs that are not there.
        assert (scoring.by_gpu, scoring.actors, scoring.provider) == (True, 3, "CPUExecutionProvider")
        assert flat(scoring.rows(iter(found))) == flat(here(model_file).rows(iter(found)))
        # And by the CPU alone, which then decodes and scores.
        scoring = Scoring(connected, model_file, "cpu")
        assert (scoring.by_gpu, scoring.actors, scoring.batch) == (False, 1, 8)
        assert flat(scoring.rows(iter(found))) == flat(here(model_file, batch=8).rows(iter(found)))
        with pytest.raises(MachineError, match="a GPU is required"):
            Scoring(connected, model_file, require_gpu=True)


def test_each_actor_opens_the_model_once_in_a_wave(connected, model_file, scans, tmp_path, monkeypatch):
    monkeypatch.setattr("damcli.cluster.decoding.SCANS", BATCH)
    found = everything(scans)

    class Counted(_Opener):
        def open(self):
            (tmp_path / f"{os.getpid()} {time.monotonic_ns()}").touch()
            return super().open()

    scoring = Scoring(connected, model_file, "cpu", batch=BATCH, threads=1)
    scoring.opener = Counted(model_file, "cpu", False)
    assert len(flat(scoring.rows(iter(found)))) == len(found) > 4 * BATCH
    opened = [file.name.split()[0] for file in tmp_path.iterdir()]
    assert len(opened) == len(set(opened)) == scoring.actors == 1


@pytest.mark.slow
def test_where_memory_runs_out_the_rows_are_the_same_and_it_is_told(connected, model_file, scans):
    found = [one for one in everything(scans) if one.name.endswith(".png")]

    class Small(_Opener):
        def open(self):
            model = super().open()
            engine = model.engines[0]

            class Device:
                def run(self, inputs, outputs):
                    if len(inputs["images"]) > 3:
                        raise OutOfMemory("out of memory")
                    return engine.run(inputs, outputs)

            return dataclasses.replace(model, engines=(Device(),))

    scoring = Scoring(connected, model_file, "cpu", batch=8)
    scoring.opener = Small(model_file, "cpu", False)
    rows = flat(scoring.rows(iter(found)))
    expected = flat(here(model_file, batch=8).rows(iter(found)))
    assert [row[:4] for row in rows] == [row[:4] for row in expected]
    for (*_, got), (*_, wanted) in zip(rows, expected, strict=True):
        if wanted is not True:
            np.testing.assert_allclose(np.frombuffer(got, "f4"), np.frombuffer(wanted, "f4"), rtol=1e-5)
    assert 1 <= scoring.most <= 3 < scoring.batch


@pytest.mark.slow
def test_a_node_with_another_model_or_another_provider_is_named(connected, model_file, scans, tmp_path):
    found, copy = everything(scans), tmp_path / "toy.onnx"
    copy.write_bytes(model_file.read_bytes())
    scoring = Scoring(connected, copy, "cpu", batch=BATCH)
    scoring.provider = "CUDAExecutionProvider"
    with pytest.raises(MachineError, match=r"node .* runs the model on CPUExecutionProvider"):
        list(scoring.rows(iter(found)))
    scoring = Scoring(connected, copy, "cpu", batch=BATCH)
    scoring.sha256 = "0" * 64
    with pytest.raises(MachineError, match=r"node .* has another model") as refused:
        list(scoring.rows(iter(found)))
    assert str(copy) in str(refused.value)


def test_a_compressed_tar_is_refused_before_anything_is_scored(connected, model_file, scans, tmp_path):
    with tarfile.open(tmp_path / "scans.tgz", "w:gz") as archive:
        archive.add(scans / "5.png", "5.png")
    with pytest.raises(UsageError, match="compressed tar") as refused:
        next(Scoring(connected, model_file, "cpu", batch=2).rows(inputs.given([str(tmp_path)]).find()))
    assert refused.value.where == tmp_path / "scans.tgz"
