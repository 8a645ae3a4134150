"""Ray clusters on this machine, each node with processes of its own, to connect to and to break."""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

# Nobody else on this network may use the clusters of the tests. Read by Ray when it starts, here and in all nodes.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


# A node that is lost is missed after some five seconds, and no worker is started before there is work for it.
CONFIG = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "prestart_worker_first_driver": False}


def wait_for(true: Callable[[], object], what: str = "this", seconds: float = 60) -> None:
    """Wait until `true()`; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.05)


def processes(session: int) -> list[int]:
    """Return the ids of the processes that live in the session of this process, which need not live itself."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, belongs = file.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(belongs) == session and state not in "ZX":
            found.append(int(file.parent.name))
    return found


class Nodes:
    """A cluster whose nodes are started one by one; the first, number 0, is the head. `address` is where it is."""

    def __init__(self) -> None:
        # Short, as the paths of sockets have a limit.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))
        self.address = ""
        self.starters: list[subprocess.Popen] = []

    def add(
        self, *options: str, cpus: int = 1, store: int = 100_000_000, python: str | Path = sys.executable,
        prefix: tuple[str, ...] = (), config: Mapping[str, object] = MappingProxyType({}), **env: str,
    ) -> int:  # fmt: skip
        """Start a node, wait until it is up, and return its number.

        `python` runs its workers, `prefix` is a command to run it under, `env` is put on top of our environment;
        `config` are settings of Ray's, for the head.
        """
        number = len(self.starters)
        head = (
            *("--head", "--port=0", "--include-dashboard=false", f"--temp-dir={self.folder}"),
            f"--system-config={json.dumps({**CONFIG, **config})}",
        )
        command = [
            *prefix, str(python), "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats",
            *((f"--address={self.address}",) if self.address else head), "--include-log-monitor=false",
            f"--num-cpus={cpus}", "--num-gpus=0", f"--object-store-memory={store}", *options,
        ]  # fmt: skip
        log = self.folder / f"start{number}.log"
        with log.open("wb") as out:
            starter = subprocess.Popen(
                command,
                env=os.environ | env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.starters.append(starter)
        wait_for(
            lambda: "will now block" in log.read_text() or starter.poll() is not None, f"the start of node {number}"
        )
        assert starter.poll() is None, log.read_text()
        self.address = self.address or re.search(r"address='(\S+)'", log.read_text())[1]
        return number

    def raylet(self, number: int) -> int:
        """Return the process id of the node's raylet."""
        (found,) = [pid for pid in self.of(number) if Path(f"/proc/{pid}/comm").read_text().strip() == "raylet"]
        return found

    def of(self, number: int) -> list[int]:
        """Return the ids of the processes of a node, its workers among them."""
        return processes(self.starters[number].pid)

    def kill(self, number: int) -> None:
        """Kill all of a node at once, as a power cut does."""
        while pids := self.of(number):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self.starters[number].wait()

    def leave(self, number: int) -> None:
        """Let a node leave in good order: the others know at once."""
        self.starters[number].terminate()
        self.starters[number].wait(60)
        self.kill(number)

    def close(self) -> None:
        for number in reversed(range(len(self.starters))):
            self.kill(number)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def cluster() -> Iterator[Nodes]:
    """A cluster without nodes yet: `add()` them."""
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.close()


@pytest.fixture(scope="session")
def two_nodes() -> Iterator[Nodes]:
    """A cluster of two nodes with a CPU each, for tests that leave it as it is (see `joined`)."""
    nodes = Nodes()
    try:
        nodes.add()
        nodes.add()
        yield nodes
    finally:
        nodes.close()


@pytest.fixture
def joined(two_nodes: Nodes) -> Iterator[Nodes]:
    """The same, where nodes that are added leave after the test."""
    before = len(two_nodes.starters)
    yield two_nodes
    for number in range(before, len(two_nodes.starters)):
        two_nodes.leave(number)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with heat maps that also takes an age."""
    import polars as pl
    import torch

    from damcli.bundle import build
    from damcli.data import metadata
    from damcli.data.images import Contract
    from damcli.deepauc.metadata import MetadataNetwork
    from damcli.deepauc.network import Classifier

    torch.manual_seed(0)
    ages = pl.DataFrame({"age": [30.0, None, 71.0, 45.0]})
    encoding = metadata.fit(ages, ["age"])
    mixed = build.Mixed(MetadataNetwork(encoding.width, 2, 0).eval(), encoding, 0.5)
    origin = {"run": "run-0", "recipe": "toy", "loss": "aucm", "seed": 0}
    hashes = {"dataset": "d" * 64, "weights_sha256": "a" * 64}
    network, findings = Classifier("test_resnet", 2).eval(), ["Edema", "Fracture"]
    member = build.Member(network, findings, Contract(size=64, channels=1), origin | hashes, metadata=mixed)
    path = tmp_path_factory.mktemp("model") / "toy.onnx"
    scans = np.random.default_rng(0).integers(0, 256, (4, 64, 64), dtype=np.uint8)
    build.export([member], path, scans, metadata=ages, maps=True)
    return path
