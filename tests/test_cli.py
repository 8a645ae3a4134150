"""The root command: starts fast, lists every command, ends with the right code and never with a traceback."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from damcli.cli import app

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ["prepare", "train", "evaluate", "export", "predict", "demo", "reproduce", "info"]
BELOW = [["info", "doctor"], *(["reproduce", name] for name in ("figure1", "table1", "ablations"))]


def damcli(*arguments, **options):
    options = {"capture_output": True, "text": True, "timeout": 120} | options
    return subprocess.run([sys.executable, "-m", "damcli", *arguments], **options)


@pytest.fixture(scope="module")
def helps():
    """What `--help` shows of every command, asked for in one new process, and what that process has imported."""
    commands = [[], *[[name] for name in COMMANDS], *BELOW]
    code = (
        "import contextlib, io, json, sys\n"
        "from damcli import cli\n"
        "shown = {}\n"
        f"for command in {commands!r}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        code = cli._run([*command, '--help'])\n"
        "    shown[' '.join(command)] = [code, out.getvalue(), sorted(sys.modules)]\n"
        "print(json.dumps(shown))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", ["", *COMMANDS, *map(" ".join, BELOW)])
def test_help_imports_nothing_heavy_and_fits_a_screen(command, helps):
    code, out, imported = helps[command]
    heavy = {"torch", "torchvision", "timm", "polars", "cv2", "pydicom", "onnxruntime", "onnx", "matplotlib", "numpy"}
    assert (code, heavy & set(imported)) == (0, set())
    assert 10 < len(out.splitlines()) <= 52, "help must fit one screen"


@pytest.mark.parametrize(
    "command", [name for name in COMMANDS if name not in ("info", "reproduce")] + [*map(" ".join, BELOW)]
)
def test_every_command_has_an_example_in_its_help(command, helps):
    assert f"damcli {command}" in helps[command][1].split("\n", 2)[2]


def test_every_command_is_in_the_readme_and_in_the_architecture_page():
    names = [command.name for command in app.registered_commands] + [group.name for group in app.registered_groups]
    assert names == COMMANDS
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in [*names, *(" ".join(command) for command in BELOW)]:
        assert f"damcli {name}" in readme, f"README.md does not show `damcli {name}`"


def test_ci_runs_the_test_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    [line] = [line for line in script.splitlines() if line.endswith("pytest")]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert line.replace(" -q ", " ") in readme


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["prepre"], 2, "prepare"),
        (["prepare", "chexpert", "--sise", "320"], 2, "--size"),
        (["prepare", "chexpert", "not-here", "-o", "x"], 2, "not-here"),
        (["train", "not-here"], 3, "not-here"),
        (["evaluate", "not-here", "not-here"], 2, "not-here"),
        (["export", "not-here", "-o", "x.onnx"], 3, "not-here"),
        (["predict", "not-here"], 2, "not-here"),
    ],
)
def test_bad_input_is_a_message_and_a_code(arguments, code, message, tmp_path, monkeypatch, run_here):
    monkeypatch.chdir(tmp_path)
    ended, out, err = run_here(*arguments)
    assert message in err
    assert "Traceback" not in err
    assert err.startswith("error: ")
    assert (ended, out) == (code, ""), err
    assert list(tmp_path.iterdir()) == []


def test_a_process_ends_with_that_code_too(tmp_path):
    done = damcli("evaluate", "not-here", "not-here", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")


def test_the_version_is_that_of_the_package():
    assert re.fullmatch(r"damcli \d+\.\d+\.\d+", damcli("--version").stdout.strip())


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_ends_with_its_code_and_no_traceback(sent, code, tmp_path):
    running = subprocess.Popen(
        [sys.executable, "-m", "damcli", "demo", "-o", str(tmp_path / "demo")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    running.stderr.readline()
    time.sleep(0.5)
    running.send_signal(sent)
    _, err = running.communicate(timeout=60)
    assert running.returncode == code, err
    assert "Traceback" not in err


def test_the_wheel_holds_the_recipes_and_works_away_from_the_source(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "from damcli import recipes\n"
        "print(recipes.__file__, recipes.names(), recipes.folders()[0])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert str(tmp_path / "site") in done.stdout
    assert "'chexpert-small'" in done.stdout
    assert str(tmp_path / "site" / "damcli" / "models") in done.stdout


def test_a_reader_that_has_enough_is_no_bug():
    command = [sys.executable, "-m", "damcli", "--help"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
