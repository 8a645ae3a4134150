"""Clusters that cannot do the work are refused by name, and whatever happens to one, a run ends and nothing stays."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import damcli
from damcli.cluster.session import Session, check_version, here, ray_errors, session
from damcli.cluster.watch import silence
from damcli.errors import DataError, MachineError, UsageError

pytestmark = pytest.mark.distributed

# A command of damcli that works on a cluster until it is stopped.
PROGRAM = """
import sys, time
from damcli import cli
from damcli.cluster import watch
from damcli.cluster.session import ray_errors, session
watch.PATIENCE = 3.0

def work():
    with session({address!r}, workers=2), ray_errors():
        import ray
        @ray.remote
        def one(number):
            time.sleep(0.1)
            return number
        print("ready", file=sys.stderr, flush=True)
        {body}

cli.app.command("work")(work)
cli.main(["work"])
"""
GET = "[ray.get(one.remote(number)) for number in range(10**6)]"
DATA = (
    "[_ for _ in ray.data.range(10**4, override_num_blocks=10**3).map(lambda row: time.sleep(0.1) or row).iter_rows()]"
)


@pytest.fixture
def away(tmp_path, monkeypatch):
    """Ray lets workers import what lies in the driver's folder: so not the one where damcli is."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def program(tmp_path):
    """Returns `start(address, body)`: that program, started and at work, its output in `out.txt` and `err.txt`."""
    running = []

    def start(address, body=GET):
        script = tmp_path / "program.py"
        script.write_text(PROGRAM.format(address=address, body=body))
        (tmp_path / "home").mkdir()
        with (tmp_path / "out.txt").open("wb") as out, (tmp_path / "err.txt").open("wb") as err:
            env = os.environ | {"HOME": str(tmp_path / "home"), "TMPDIR": "/tmp"}
            process = subprocess.Popen(
                [sys.executable, script], stdout=out, stderr=err, env=env, start_new_session=True
            )
        running.append(process)
        until(lambda: "ready" in (tmp_path / "err.txt").read_text() or process.poll() is not None)
        time.sleep(1.5)
        assert process.poll() is None, (tmp_path / "err.txt").read_text()
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def below(pid):
    """Return the processes that a process has started, and theirs."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, new = set(), {pid}
    while new := {child for child, parent in parents.items() if parent in new} - found:
        found |= new
    return found


def living(pids):
    return [
        pid
        for pid in pids
        if Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    ]


def refused(address, *sees):
    with pytest.raises(MachineError) as error, session(address, sees):
        raise AssertionError("the cluster was taken")
    return str(error.value)


def test_words():
    assert here() == f"damcli {damcli.__version__}"
    check_version(here())
    assert Session((), local=True).words == "Ray: no node, no CPU, no GPU"


def test_importing_it_imports_no_ray():
    code = "import sys, damcli.cluster.session; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_cluster_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    assert "no Ray cluster is at this address" in refused(f"127.0.0.1:{port}")
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("banner", [b"", b"SSH-2.0-OpenSSH_9.6\r\n"])
def test_something_else_is_there(banner):
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        client.close()
        if banner:
            from threading import Thread

            def answer():
                for _ in range(2):
                    server.accept()[0].sendall(banner)

            Thread(target=answer, daemon=True).start()
        assert silence(server.getsockname(), 1) == ("what answers there is not Ray" if banner else "no answer")


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "head", "10.0.0.1:99999999"])
def test_no_address(address):
    with pytest.raises(UsageError, match="no address"), session(address):
        pass


def test_two_nodes(two_nodes, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("RAY_ADDRESS", two_nodes.address)
    handler = signal.getsignal(signal.SIGTERM)
    for _ in range(2):  # a second time in one process
        with session(None, [tmp_path]) as found:
            assert (len(found.nodes), found.cpus, found.gpus, found.local) == (2, 2, 0, False)
            assert len({node.name for node in found.nodes}) == 2
            assert signal.getsignal(signal.SIGTERM) == handler
    assert capfd.readouterr() == ("", "")


def connected(address, folder, token=None, mode=None):
    """Connect in a process of its own, with this RAY_AUTH_TOKEN and RAY_AUTH_MODE; return what it says."""
    code = f"from damcli.cluster.session import session\nwith session({address!r}) as found: print(found.words)"
    given = {"RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": mode}
    env = {name: value for name, value in (os.environ | given | {"HOME": str(folder)}).items() if value is not None}
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=folder)
    return ended.stdout + ended.stderr


def test_a_cluster_that_asks_for_a_token(two_nodes, tmp_path):
    token = os.environ["RAY_AUTH_TOKEN"]
    assert connected(two_nodes.address, tmp_path, token) == "Ray: 2 nodes, 2 CPUs, no GPU\n"
    for other in (None, "0" * 64):
        said = connected(two_nodes.address, tmp_path, other)
        assert "asks for a token: ours is another, or there is none" in said
        assert "fix: its token in RAY_AUTH_TOKEN or ~/.ray/auth_token" in said
    said = connected(two_nodes.address, tmp_path, token, "disabled")
    assert "asks for a token, and RAY_AUTH_MODE here is disabled" in said
    assert "fix: RAY_AUTH_MODE=token, and its token in RAY_AUTH_TOKEN" in said
    assert token not in said


@pytest.mark.slow
def test_a_cluster_that_asks_for_none_and_then_one_of_our_own(cluster, monkeypatch):
    cluster.add("--node-ip-address=127.0.0.1", cpus=1, RAY_AUTH_MODE="disabled")
    assert "asks for no token, and RAY_AUTH_MODE here is token" in refused(cluster.address)
    monkeypatch.delenv("RAY_AUTH_MODE")
    for address in (cluster.address, "local"):
        with session(address, workers=1), ray_errors():
            import ray

            assert ray.get(ray.remote(lambda: 7).remote()) == 7


def test_a_node_without_damcli(joined, tmp_path, away):
    # An environment that has all the packages of ours but damcli.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    (packages,) = (tmp_path / "bare" / "lib").glob("*/site-packages")
    ours = Path(np.__file__).parent.parent
    for entry in ours.iterdir():
        if "damcli" not in entry.name:
            (packages / entry.name).symlink_to(entry)
    joined.add(python=tmp_path / "bare/bin/python")
    said = refused(joined.address)
    assert "has no damcli" in said
    assert f"damcli[ray]=={damcli.__version__}" in said


def test_a_node_with_another_damcli(joined, tmp_path, away):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "damcli.py").write_text("__version__ = '0.0.1'")
    joined.add(PYTHONPATH=str(tmp_path / "other"))
    said = refused(joined.address)
    assert f"has damcli 0.0.1, this machine {damcli.__version__}" in said
    assert "node " in said


@pytest.mark.slow
def test_a_node_with_another_python(joined, tmp_path, away):
    """Ray lets no other Python join, so this one only says that it is another."""
    plant = "import platform\nplatform.python_version_tuple = lambda: ('3', '99', '0')"
    (tmp_path / "sitecustomize.py").write_text(plant)
    joined.add(PYTHONPATH=str(tmp_path))
    assert "runs Python 3.99, this machine 3." in refused(joined.address)


def test_a_node_that_does_not_see_a_path(joined, tmp_path, away):
    """A node with a mount of its own over a folder: it has nothing there, then something else."""
    blind = ("unshare", "--mount", "--map-root-user")
    if subprocess.run([*blind, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no mounts of one's own")
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "model.onnx").write_bytes(b"12345")
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.onnx").write_bytes(b"1234")
    joined.add(prefix=(*blind, "sh", "-c", f'mount --bind "{other}" "{scans}" && exec "$@"', "sh"))
    with session(joined.address, [scans]):
        pass
    assert "sees something else at this path" in refused(joined.address, scans, scans / "model.onnx")
    (other / "model.onnx").unlink()
    said = refused(joined.address, scans, scans / "model.onnx")
    assert "does not see this path" in said
    assert str(scans / "model.onnx") in said


@pytest.mark.slow
def test_no_cpu(cluster):
    cluster.add(cpus=0)
    assert "no node of the Ray cluster has a CPU" in refused(cluster.address)


def hold(megabytes):
    """Put that much into the object store at once, and return how much is in it."""
    import ray

    return sum(len(ray.get(one)) for one in [ray.put(np.ones(10**7, np.uint8)) for _ in range(megabytes // 10)])


def test_a_full_object_store(cluster):
    cluster.add(store=80_000_000, config={"local_fs_capacity_threshold": 0.00001})
    with session(cluster.address):
        import ray

        block = ray.remote(lambda: np.ones(2 * 10**8, np.uint8))
        rows = ray.data.range(2).map_batches(lambda rows: {"x": np.ones((1, 2 * 10**8), np.uint8)})
        for work in (lambda: hold(200), lambda: ray.get(block.remote()), lambda: list(rows.iter_rows())):
            with pytest.raises(MachineError, match="object store on a node is full"), ray_errors():
                work()


@pytest.mark.slow
def test_what_does_not_fit_the_object_store_is_spilled(cluster):
    cluster.add(store=80_000_000)
    with session(cluster.address), ray_errors():
        assert hold(300) == 3 * 10**8


def test_errors_of_tasks(two_nodes):
    with session(two_nodes.address):
        import ray

        def fail(row=None):
            raise DataError("a loss that is not finite", where="epoch 3", fix="look")

        for work in (
            lambda: ray.get(ray.remote(fail).remote()),
            lambda: ray.data.range(2).map(fail).materialize(),
        ):
            with pytest.raises(DataError) as error, ray_errors():
                work()
            assert str(error.value) == "a loss that is not finite\n  where: epoch 3\n  fix: look"
        with pytest.raises(ZeroDivisionError), ray_errors():
            ray.get(ray.remote(lambda: 1 / 0).remote())
        with pytest.raises(MachineError, match="nothing was done"), ray_errors():
            raise ray.data.exceptions.ExecutionTimeoutError("no progress")
        with pytest.raises(MachineError, match="died again and again"), ray_errors():
            ray.get(ray.remote(max_retries=0)(lambda: os.kill(os.getpid(), 9)).remote())


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_a_local_cluster_is_closed_and_ends_with_us(program, tmp_path, number, code):
    process = program("local", DATA)
    started = below(process.pid)
    names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in started}
    assert {"raylet", "gcs_server"} <= names
    assert {address for pid in started | {process.pid} for address in listening(pid)} == {"127.0.0.1"}
    (folder,) = {
        Path(*Path(part.split("=")[1]).parts[:3])
        for pid in started
        for part in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if part.startswith("--session-dir=")
    }
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not list(folder.rglob("*usage_stats*"))
    os.kill(process.pid, number)
    assert process.wait(60) == code
    until(lambda: not living(started))
    until(lambda: not folder.exists())
    # Neither token nor settings of Ray in the user's folder, and nothing said.
    assert not list((tmp_path / "home").rglob("*ray*"))
    assert (tmp_path / "out.txt").read_text() == ""
    assert (tmp_path / "err.txt").read_text() == "ready\n"


def listening(pid):
    """Return the addresses at which a process listens."""
    own = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            own.add(str(descriptor.readlink()))
        except OSError:
            continue
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                last = bytes.fromhex(fields[1].split(":")[0][-8:])[::-1]
                yield socket.inet_ntoa(last)


def head_of(cluster):
    """Return the process of the head that a cluster cannot do without."""
    (found,) = [pid for pid in cluster.of(0) if Path(f"/proc/{pid}/comm").read_text().strip() == "gcs_server"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("body", [DATA, GET])
def test_the_head_goes_away(cluster, program, tmp_path, body):
    cluster.add()
    process = program(cluster.address, body)
    os.kill(cluster.starters[0].pid, signal.SIGSTOP)  # else it ends Ray on this machine too
    os.kill(head_of(cluster), signal.SIGKILL)
    code, said = process.wait(40), (tmp_path / "err.txt").read_text()
    assert code == 5, said
    assert said.count("error: the Ray cluster went away: its head does not answer (Connection refused)") == 1
    assert "fix: " in said
    assert (tmp_path / "out.txt").read_text() == ""


@pytest.mark.slow
def test_ray_goes_away_on_this_machine(cluster, program, tmp_path):
    """Ray ends our process, with exit code 1 and no word, where that is waiting for its object store just then."""
    cluster.add()
    process = program(cluster.address, GET)
    cluster.kill(0)
    code, said = process.wait(20), (tmp_path / "err.txt").read_text()
    assert (code, said.count("error: the Ray cluster went away: Ray on this machine is gone")) in ((5, 1), (1, 0))


@pytest.mark.slow
def test_a_head_that_hangs(cluster, program, tmp_path):
    cluster.add()
    process = program(cluster.address)
    os.kill(head_of(cluster), signal.SIGSTOP)
    assert process.wait(40) == 5
    assert "its head does not answer (no answer)" in (tmp_path / "err.txt").read_text()


@pytest.mark.slow
def test_a_node_that_goes_away_is_done_without(cluster, program, tmp_path):
    cluster.add()
    cluster.add()
    process = program(cluster.address, "print(sum(ray.get([one.remote(number) for number in range(100)])))")
    cluster.kill(1)
    assert process.wait(90) == 0
    assert (tmp_path / "out.txt").read_text() == "4950\n"
