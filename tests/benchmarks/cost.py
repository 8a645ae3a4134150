"""What each command costs, in closed form: bytes, core-seconds, wall seconds and memory for any number of scans.

Pure functions of the scans, the kind of file, and the machines; the constants are what `scale.py` measured. The wall
clock of a run is its start, the slowest of what works at the same time (cores or GPUs, the one process that writes,
the storage), and the tail in which the last groups are finished. `tests/test_cost.py` compares it with a simulation of
every single group, `scale.py` with runs on Ray.

    python tests/benchmarks/cost_tables.py      prints the tables of docs/scale.md
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from damcli.cluster.waves import FIRST, GROUPS_PER_CPU, WAVE
from damcli.data.shards import SHARD_SCANS

GROUP = 64  # scans: `cluster.decoding.group_size` of images below 512 pixels
FINDINGS, DRAWS, SIDE, EPOCHS = 14, 2000, 320, 2


class Kind(NamedTuple):
    """A kind of file: the bytes that are read of each, and the core-seconds that decoding it to 320 pixels takes."""

    size: float
    decode: float


@dataclass(frozen=True)
class Constants:
    """What `scale.py` measured on one core: seconds for a scan where nothing else is said, and bytes for a scan."""

    # The work that is shared out.
    score: float = 0.117  # DenseNet121 at 320 pixels, ONNX Runtime in fp32
    train: float = 0.27  # DenseNet121 at 224 pixels in fp32: forward, backward, optimizer
    # The one process that runs `predict`: what is done once, and what Ray adds.
    listed: float = 8.1e-06  # a file found in a folder; twice, since they are counted first
    stat: float = 5.6e-06
    sent: float = 2.7e-06
    received: float = 4.6e-06
    journal: float = 4.8e-06
    table: float = 1.19e-05
    # That of `prepare`.
    fetched: float = 6.3e-05  # an image, from Ray
    stored: float = 0.00011  # an image taken, written and hashed in its shard
    printed: float = 0.000155  # what copies are found by
    manifest: float = 8.2e-06
    part: float = 7.8e-06  # a finished shard, each time that the journal is written: with every shard
    refused: float = 2.1e-06  # a refused scan, likewise
    # `evaluate`: a scan; a scan and finding; a scan, finding and draw.
    joined: float = 2.4e-05
    ranked: float = 2.61e-06
    drawn: float = 3.44e-08
    loaded: float = 2e-05  # a prepared image read for training
    # Seconds on Ray: to start or find the cluster, a wave, each actor that a node starts, a group in its worker, and
    # the driver's own for a group.
    cluster: float = 10.2
    wave: float = 1.8
    actor: float = 0.875
    opened: float = 0.1  # the model, by each actor
    group: float = 0.0
    handed: float = 0.0162
    begin: float = 1.33  # of any command
    # Bytes of memory: of a process, and for a scan.
    process: float = 127000000.0
    scoring: float = 4.1e8  # predict with its workers on two cores, by predict.md
    training: float = 3.7e9  # train in batches of 32, by train.md
    waiting: float = 530.0  # an input of a wave
    row: float = 1620.0  # of `prepare`
    truth: float = 1710.0  # of `evaluate`
    known: float = 423.0  # of `train`
    # Bytes on the disk.
    manifest_row: float = 25.0
    table_row: float = 55.0
    journal_row: float = 120.0


MEASURED = Constants()
CHEST = "chest X-ray, DICOM, uncompressed"
KINDS = {
    "chest X-ray, JPEG of 2828 × 2320": Kind(1.26e6, 0.0154),
    CHEST: Kind(7.2e6, 0.0137),
    "chest X-ray, DICOM, JPEG 2000": Kind(0.68e6, 0.116),
    "mammogram, DICOM, JPEG 2000": Kind(2.68e6, 0.467),
}


@dataclass(frozen=True)
class Machines:
    """Cores that decode (and score, without GPUs) on so many nodes; `storage` gives bytes/s to all of them together.

    `rate` is how many images a second one of the `gpus` scores or trains on: no figure for it was measured here.
    """

    cores: int
    nodes: int = 1
    storage: float = math.inf
    gpus: int = 0
    rate: float = 0.0


class Cost(NamedTuple):
    """Bytes read and written, core-seconds of decoding and of the network, seconds of the one process, memory, time.

    `gpu` are GPU-seconds in place of the network's core-seconds; `bound` is what the wall clock's `seconds` wait for.
    """

    read: float
    written: float
    decode: float
    network: float
    gpu: float
    driver: float
    memory: float
    seconds: float
    bound: str


def waves(items: int, size: int = GROUP) -> Iterator[int]:
    """Yield how many items each wave takes, of groups of up to `size`: each twice the one before, up to a limit.

    >>> list(waves(20_000))
    [4096, 8192, 7712]
    """
    groups = FIRST
    while items > 0:
        yield min(items, groups * size)
        items -= groups * size
        groups = min(2 * groups, WAVE)


def step(items: int, cores: int, size: int = GROUP) -> int:
    """Return how many items a group of a wave holds.

    >>> step(4096, 8), step(100, 8)
    (64, 4)
    """
    return min(size, -(-items // (GROUPS_PER_CPU * cores)))


def tail(seconds: Sequence[float], workers: int) -> float:
    """Return for how long workers wait, on average, for the last of them, with groups that take `seconds`.

    Ray gives each worker a group ahead. When the last one is given away, a worker still has what is left of the one in
    work, which is distributed as in a renewal process, with density (1 - G(x)) / mean where G is the distribution of
    `seconds`, and a whole one. The wall clock is the share of all work that each worker has, plus the expectation of
    the largest of so many such sums less that of one: the integral of F(x) - F(x)^workers.

    >>> tail([2.0], 1), round(tail([2.0] * 9, 2), 3)
    (0.0, 0.333)
    """
    times = np.sort(np.asarray(seconds, np.float64))
    total = times.sum()
    if not total:
        return 0.0
    # The distribution of what is left is linear between the lengths of groups.
    left = (np.cumsum(times) + np.arange(len(times))[::-1] * times) / total
    whole = np.quantile(times, (np.arange(200) + 0.5) / 200, method="inverted_cdf")
    x = np.linspace(0, 2 * times[-1], 2001)
    places, known = np.append(0.0, times), np.append(0.0, left)
    each, number = np.unique(whole, return_counts=True)
    reached = np.average([np.interp(x - one, places, known) for one in each], axis=0, weights=number)
    return float(np.trapezoid(reached - reached**workers, x))


def wave(
    seconds: Sequence[float], scans: int, machines: Machines, driver: float, size: float = 0.0, c: Constants = MEASURED
) -> tuple[float, str]:
    """Return the wall seconds of a wave on Ray, and what they wait for.

    `seconds` are those of its groups in their workers, `scans` all of theirs, `driver` the one process's for a scan,
    `size` the bytes that are read of each. The one process can begin when the first group is done, and still has the
    last one's rows to write when all are.
    """
    groups, workers = np.asarray(seconds, np.float64) + c.group, min(machines.cores, len(seconds))
    share = max(float(groups.sum()) / workers + tail(groups, workers), float(groups.max()))
    writing = scans * driver + len(groups) * c.handed
    start = c.wave + c.actor * workers / machines.nodes
    both = {
        "cores": share + writing / len(groups),
        "driver": float(groups.mean()) + writing,
        "storage": scans * size / machines.storage,
    }
    bound = max(both, key=lambda name: both[name])
    return start + both[bound], bound if both[bound] > start else "start"


def replay(
    recorded: Sequence[float], machines: Machines, driver: float, size: int = GROUP, c: Constants = MEASURED
) -> tuple[float, str]:
    """Return the wall seconds of a run on Ray whose scans take the `recorded` ones, and what its last wave waits for.

    >>> replay([0.5] * 1000, Machines(1), 0.0)[0] > 500
    True
    """
    times, total, bound = np.asarray(recorded, np.float64), 0.0, "start"
    for number in waves(len(times), size):
        taken, times = times[:number], times[number:]
        each = step(number, machines.cores, size)
        groups = np.add.reduceat(taken, np.arange(0, number, each))
        seconds, bound = wave(groups, number, machines, driver, c=c)
        total += seconds
    return total, bound


def predict(scans: int, kind: Kind, machines: Machines, ray: bool = True, c: Constants = MEASURED) -> Cost:
    """Return the cost of `predict`, on Ray or by the local engine.

    >>> one, ten = (predict(10**5, Kind(1e6, 0.05), Machines(cores)) for cores in (1, 10))
    >>> 9 < one.seconds / ten.seconds < 10
    True
    """
    work = kind.decode + (0 if machines.gpus else c.score)
    driver = c.listed + c.stat + c.journal + (c.sent + c.received if ray else 0)
    around = scans * (c.listed + c.table)
    seconds, bound = _shared(scans, work, kind.size, machines, driver, ray, c, c.opened)
    if machines.gpus and (scoring := scans / (machines.gpus * machines.rate)) > seconds:
        seconds, bound = scoring, "GPUs"
    # Two waves of inputs are held: one in work, one that is found meanwhile.
    held = 2 * min(scans, WAVE * GROUP) * c.waiting if ray else 0
    return Cost(
        read=scans * kind.size,
        written=scans * (c.journal_row + c.table_row),
        decode=scans * kind.decode,
        network=0 if machines.gpus else scans * c.score,
        gpu=scans / machines.rate if machines.gpus else 0,
        driver=scans * (driver + (c.handed / GROUP if ray else 0)) + around,
        memory=c.scoring + held,
        seconds=c.begin + around + seconds,
        bound="driver" if around > seconds else bound,
    )


def prepare(
    scans: int, kind: Kind, machines: Machines, ray: bool = True, refused: float = 0.0, c: Constants = MEASURED
) -> Cost:
    """Return the cost of `prepare`, of whose scans the share `refused` is: one process writes, and holds all rows.

    >>> prepare(10**6, Kind(1e6, 0.05), Machines(1024, nodes=64)).bound
    'driver'
    """
    shards = -(-scans // SHARD_SCANS)
    # The journal of all shards and refused scans so far is written with every shard.
    journal = (c.part * shards + c.refused * refused * scans) * shards / 2
    driver = c.stat + c.stored + c.printed + (c.sent + c.fetched if ray else 0) + journal / scans
    around = scans * c.manifest
    seconds, bound = _shared(scans, kind.decode, kind.size, machines, driver, ray, c)
    return Cost(
        read=scans * (kind.size + SIDE**2),  # each shard is read once more, to be hashed
        written=scans * (SIDE**2 + c.manifest_row),
        decode=scans * kind.decode,
        network=0,
        gpu=0,
        driver=scans * (driver + (c.handed / GROUP if ray else 0)) + around,
        memory=c.process + scans * c.row + (2 * min(scans, WAVE * GROUP) * c.waiting if ray else 0),
        seconds=c.begin + around + seconds,
        bound="driver" if around > seconds else bound,
    )


def train(scans: int, machines: Machines, epochs: int = EPOCHS, c: Constants = MEASURED) -> Cost:
    """Return the cost of `train` on prepared images of 320 pixels; each GPU, else each node, has a process that loads.

    >>> train(1000, Machines(2), epochs=3).network == 3000 * MEASURED.train
    True
    """
    images = scans * epochs
    works = {
        "GPUs" if machines.gpus else "cores": images / (machines.gpus * machines.rate)
        if machines.gpus
        else images * c.train / machines.cores,
        "loading": images * c.loaded / max(machines.nodes, machines.gpus),
        "storage": images * SIDE**2 / machines.storage,
        "start": c.begin,
    }
    bound = max(works, key=lambda name: works[name])
    return Cost(
        read=images * SIDE**2,
        written=0,
        decode=0,
        network=0 if machines.gpus else images * c.train,
        gpu=images / machines.rate if machines.gpus else 0,
        driver=images * c.loaded,
        memory=c.training + scans * c.known,
        seconds=c.begin + works[bound],
        bound=bound,
    )


def evaluate(scans: int, findings: int = FINDINGS, draws: int = DRAWS, cores: int = 1, c: Constants = MEASURED) -> Cost:
    """Return the cost of `evaluate` on a table of scores; the draws are shared by up to four cores.

    >>> evaluate(10**6, draws=0).driver < evaluate(10**6, draws=10).driver
    True
    """
    reading, ranking = scans * c.joined, scans * findings * c.ranked
    drawing = scans * findings * draws * c.drawn
    alone = reading + ranking
    works = {"start": c.begin, "table": alone, "draws": drawing / min(cores, 4)}
    return Cost(
        read=2 * scans * c.table_row,
        written=0,
        decode=0,
        network=0,
        gpu=0,
        driver=alone + drawing,
        memory=c.process + scans * c.truth,
        seconds=sum(works.values()),
        bound=max(works, key=lambda name: works[name]),
    )


def _shared(
    scans: int,
    work: float,
    size: float,
    machines: Machines,
    driver: float,
    ray: bool,
    c: Constants,
    opened: float = 0.0,
) -> tuple[float, str]:
    """Return the wall seconds of what is shared out, `work` core-seconds a scan, and what they wait for."""
    if not ray:
        works = {
            "cores": scans * work / machines.cores,
            "driver": scans * driver,
            "storage": scans * size / machines.storage,
            "start": c.begin,
        }
        bound = max(works, key=lambda name: works[name])
        return works[bound], bound
    total, waits = c.cluster, {"start": c.cluster}
    # With each wave its actors open the model anew, at the same time.
    c = replace(c, wave=c.wave + opened)
    for number in waves(scans):
        each = step(number, machines.cores)
        seconds, bound = wave([each * work] * -(-number // each), number, machines, driver, size, c)
        total, waits[bound] = total + seconds, waits.get(bound, 0) + seconds
    return total, max(waits, key=lambda name: waits[name])
