"""Nothing half-written, one writer per folder, a full disk said clearly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from damcli.errors import DataError, MachineError, UsageError
from damcli.files import only_writer, read_json, replacing, sha256, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.json"
    write_text(target, "old")
    with pytest.raises(RuntimeError), replacing(target) as draft:
        draft.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_in_the_place_of_a_file_and_the_reverse_are_the_callers_to_mend(tmp_path):
    write_text(tmp_path / "file", "kept")
    (tmp_path / "folder").mkdir()
    for blocked in (tmp_path / "folder", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="choose another place"):
            write_text(blocked, "new")
    with pytest.raises(UsageError, match="choose another place"), only_writer(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "kept"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]


def test_nan_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"auroc": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_missing_json_is_a_data_error_that_names_the_thing(tmp_path):
    with pytest.raises(DataError, match="no dataset"):
        read_json(tmp_path / "dataset.json", "dataset")
    (tmp_path / "dataset.json").write_bytes(b'{"a": \xff')
    with pytest.raises(DataError, match="damaged"):
        read_json(tmp_path / "dataset.json", "dataset")


def test_sha256_is_that_of_the_standard(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    hold = "import sys, time, pathlib; from damcli.files import only_writer\n" + (
        "with only_writer(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="another damcli"), only_writer(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
    with only_writer(tmp_path):
        assert (tmp_path / ".lock").exists()
    assert not (tmp_path / ".lock").exists()


def test_a_folder_that_can_hold_no_lock_is_said(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UsageError, match="a folder stands where a file should go"), only_writer(tmp_path):
        pass


@pytest.mark.skipif(not os.access("/sys/kernel", os.X_OK), reason="this system has no /sys")
def test_a_folder_that_cannot_be_written_is_a_machine_error():
    """In /sys nobody can make a file, root included."""
    with pytest.raises(MachineError, match="cannot be written"), only_writer(Path("/sys/kernel")):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_no_space_is_a_machine_error_and_leaves_nothing(tmp_path):
    """/dev/full is the kernel's own full disk: what it answers must end as our message."""
    with pytest.raises(MachineError, match="no space is left") as refusal, replacing(tmp_path / "a.json"):
        Path("/dev/full").write_bytes(b"x" * 100_000)
    assert refusal.value.exit_code == 5
    assert list(tmp_path.iterdir()) == []
