"""A model is replaced whole or not at all, its second file with it, also when the process is killed."""

import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from damcli.bundle import container
from damcli.errors import MachineError, UsageError

LARGE, SMALL = 10_000, 10**9  # limits by which the models written here are two files, and one


@pytest.fixture
def put(hand_made, tmp_path, monkeypatch):
    """Write the model of a seed as one file or two; returns its second file's name."""

    def write(seed, limit=LARGE, name="m.onnx"):
        monkeypatch.setattr(container, "MAX_INLINE", limit)
        info = container.write(tmp_path / name, *hand_made(seed))
        return info.external and info.external.file

    return write


def names(folder):
    return {file.name for file in folder.iterdir()}


@pytest.mark.parametrize("limits", [(LARGE, LARGE), (LARGE, SMALL), (SMALL, LARGE)])
def test_the_second_file_of_a_replaced_model_goes_with_it(put, tmp_path, limits):
    put(0, limits[0])
    new = put(1, limits[1])
    assert names(tmp_path) == {"m.onnx", new} - {None}
    container.read(tmp_path / "m.onnx")


def test_the_same_model_again_keeps_its_second_file(put, tmp_path):
    assert put(0) == put(0)
    assert container.read(tmp_path / "m.onnx").external is not None


@pytest.mark.parametrize("keep", [shutil.copy, os.replace])
def test_a_copy_or_a_renamed_model_keeps_the_second_file(put, tmp_path, keep):
    old = put(0)
    keep(tmp_path / "m.onnx", tmp_path / "kept.onnx")
    new = put(1)
    assert names(tmp_path) == {"m.onnx", "kept.onnx", old, new}
    assert container.read(tmp_path / "kept.onnx").external.name == old


def test_files_that_are_not_the_old_models_stay(put, tmp_path):
    put(0, name="other.onnx")
    before = names(tmp_path)
    stranger = tmp_path / "m.onnx.0123abcd.data"
    stranger.write_bytes(b"scans")
    (tmp_path / "m.onnx").write_bytes(b"no model")
    assert names(tmp_path) - {"m.onnx"} == {*before, stranger.name}
    new = put(1)
    assert names(tmp_path) == {*before, stranger.name, "m.onnx", new}


def test_a_draft_runs_and_leaves_nothing_unless_published(put, hand_made, tmp_path, monkeypatch):
    old = put(0)
    kept = (tmp_path / "m.onnx").read_bytes()
    for limit, kind in ((LARGE, os.PathLike), (SMALL, bytes)):
        monkeypatch.setattr(container, "MAX_INLINE", limit)
        with (
            pytest.raises(ZeroDivisionError),
            container.drafted(tmp_path / "m.onnx", hand_made(1)[0]) as draft,
        ):
            assert isinstance(draft.source, kind)
            session = onnxruntime.InferenceSession(draft.source, providers=["CPUExecutionProvider"])
            [scores] = session.run(["scores"], {"images": np.zeros((3, 16, 16, 1), np.uint8)})
            assert scores.shape == (3, 2)
            raise ZeroDivisionError
        assert names(tmp_path) == {"m.onnx", old}
        assert (tmp_path / "m.onnx").read_bytes() == kept


def test_a_second_writer_of_the_same_model_is_refused(put, hand_made, tmp_path):
    put(0)
    model, info = hand_made(1)
    with container.drafted(tmp_path / "m.onnx", model) as draft:
        with pytest.raises(UsageError, match="another damcli is writing"):
            put(2)
        put(2, name="other.onnx")
        draft.publish(info)
    assert len(names(tmp_path)) == 4
    container.read(tmp_path / "m.onnx")


@pytest.mark.parametrize("limit", [LARGE, SMALL])
def test_a_full_disk_leaves_the_old_model(put, tmp_path, limit):
    old = put(0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(MachineError, match="no space is left"):
            put(1, limit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == {"m.onnx", old}
    container.read(tmp_path / "m.onnx")


@pytest.mark.parametrize("limit", [LARGE, SMALL])
def test_a_folder_in_its_place_is_said(put, tmp_path, limit):
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(UsageError, match="a folder stands where a file should go"):
        put(0, limit)
    assert names(tmp_path) == {"m.onnx"}


# Kills a writer before each of its operations on files in turn; says what is read then, and what a second try leaves.
KILLER = """
import os, shutil, signal, sys
from pathlib import Path
import onnx
from damcli.bundle import container, schema

before, work = Path(sys.argv[1]), Path(sys.argv[1], "work")
model, info = onnx.load(before / "new.onnx"), schema.ModelInfo.model_validate_json((before / "new.json").read_text())
os.fsync = lambda file: None  # a process is killed, not the machine
container.write(before / "first.onnx", onnx.load(before / "new.onnx"), info)  # imports what a write needs

def writes(last):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    count = 0
    def hook(event, arguments):
        nonlocal count
        if event == "open" or event.startswith(("os.", "shutil.")):
            count += str(work) in str(arguments)
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    container.write(work / "m.onnx", model, info)
    os._exit(0)

for case in sys.argv[2:]:
    old, container.MAX_INLINE = case.split()[0], int(case.split()[1])
    last, done = 0, False
    while not done:
        last += 1
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(before / old, work)
        done = writes(last)
        print(case, container.read(work / "m.onnx").info.created, end=" ")
        assert writes(-1)
        assert container.read(work / "m.onnx").info.created == "new"
        print(*sorted(file.name for file in work.iterdir()))
"""


@pytest.mark.distributed
def test_killed_at_any_moment_the_old_model_or_the_new_one_is_whole(hand_made, put, tmp_path):
    put(0, LARGE, "large/m.onnx"), put(0, SMALL, "small/m.onnx")
    model, info = hand_made(1)
    onnx.save(model, tmp_path / "new.onnx")
    (tmp_path / "new.json").write_text(info.model_copy(update={"created": "new"}).model_dump_json())
    cases = [f"large {LARGE}", f"large {SMALL}", f"small {LARGE}"]
    arguments = [sys.executable, "-c", KILLER, tmp_path, *cases]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    old = names(tmp_path / "large") - {"m.onnx"}
    for case in cases:
        lines = [line.removeprefix(case).split() for line in done.stdout.splitlines() if line.startswith(f"{case} ")]
        read = [line[0] == "new" for line in lines]
        assert sum(read) >= 1
        assert len(read) - sum(read) >= 4
        assert read == sorted(read), "the old one until the new one, never back"
        left = [set(line[1:]) for line in lines]
        if case.endswith(str(LARGE)):
            assert not any(name.startswith(".") for name in set.union(*left)), "what a killed one hid is removed"
        # The last one was not killed. The old second file stays where the next operation was its removal.
        unbroken = left[-1]
        more = [{name for name in files - unbroken if not name.startswith(".m.")} for files in left]
        assert all(files in (set(), old) for files in more)
        assert sum(map(bool, more)) <= 2
        assert all(files >= unbroken for files in left)
