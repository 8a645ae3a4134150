"""The cost model of `benchmarks/cost.py`: closed forms, limits, and a simulation of every group without any clock."""

import doctest
import heapq
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from damcli.cluster import waves as cluster

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
try:
    import cost
finally:
    sys.path.pop(0)

FREE = cost.Constants(**dict.fromkeys(("cluster", "wave", "actor", "group", "handed", "begin"), 0.0))
FILM = cost.Kind(1e6, 0.05)
# Seconds that decoding takes of the real files of `benchmarks/predict.md`, and scoring in 0.121 s.
RECORDED = np.array([3.7, 111.3, 12.9, 5.1, 3.5, 4.9, 3.4, 1.1, 48.8, 9.3, 125.6, 9.1, 43.4, 9.1, 31.9, 9.3, 54.4, 10.8,
                     12.6, 9.0, 458.1, 47.2]) / 1000  # fmt: skip


def simulated(
    seconds: np.ndarray, machines: cost.Machines, driver: float, size: float = 0.0, c: cost.Constants = FREE
) -> float:
    """Return when the last row is written.

    Groups go in their order to the worker that has the fewest in hand, two at most; the storage serves them as
    they are given; rows are written in order, and a wave begins when the one before it is written.
    """
    now = 0.0
    for number in cost.waves(len(seconds)):
        taken, seconds = seconds[:number], seconds[number:]
        step = cost.step(number, machines.cores)
        groups = [taken[start : start + step] for start in range(0, number, step)]
        workers = min(machines.cores, len(groups))
        now += c.wave + c.actor * workers / machines.nodes
        # When each worker can take another group: at the start two, then one as often as it has finished one.
        places = [(now, worker) for _ in range(2) for worker in range(workers)]
        free, read, writer = [now] * workers, now, now
        for group in groups:
            given, worker = heapq.heappop(places)
            read = max(read, given) + len(group) * size / machines.storage
            free[worker] = max(free[worker], read) + c.group + float(group.sum())
            heapq.heappush(places, (free[worker], worker))
            writer = max(writer, free[worker]) + c.handed + len(group) * driver
        now = writer
    return now


def drawn(name: str, scans: int) -> np.ndarray:
    rng = np.random.default_rng(len(name))
    return {
        "recorded": lambda: rng.choice(RECORDED, scans) + 0.121,
        "in turn": lambda: np.resize(RECORDED, scans) + 0.121,
        "equal": lambda: np.full(scans, 0.1),
        "exponential": lambda: rng.exponential(0.1, scans),
        "few slow": lambda: np.where(rng.random(scans) < 0.01, 5.0, 0.02),
        "short": lambda: rng.exponential(0.001, scans),
    }[name]()


# With few scans for each worker it is chance that a slow one comes last: no closed form is near a single run.
@pytest.mark.parametrize(
    ("scans", "workers"),
    [(scans, workers) for scans in (2000, 6000, 40_000) for workers in (1, 2, 4, 8, 64) if scans > 50 * workers],
)
@pytest.mark.parametrize("driver", [0.0, 0.0004, 0.02])
@pytest.mark.parametrize("name", ["recorded", "in turn", "equal", "exponential", "few slow", "short"])
def test_the_closed_form_is_near_a_simulation_of_every_group(
    name: str, driver: float, scans: int, workers: int
) -> None:
    seconds, machines = drawn(name, scans), cost.Machines(workers)
    # The closed form is an expectation over the order of the scans.
    orders = [seconds, *(np.random.default_rng(n).permutation(seconds) for n in range(20_000 // scans))]
    for c in (FREE, replace(FREE, wave=0.5, actor=0.1, group=0.01, handed=0.004)):
        wanted = float(np.mean([simulated(order, machines, driver, c=c) for order in orders]))
        assert cost.replay(seconds, machines, driver, c=c)[0] == pytest.approx(wanted, rel=0.15)


@pytest.mark.parametrize("storage", [1e7, 1e8, 1e9])
def test_storage_is_what_slow_storage_is_waited_for(storage: float) -> None:
    machines = cost.Machines(8, storage=storage)
    wanted = simulated(np.full(20_000, FILM.decode), machines, 0.0, FILM.size)
    assert cost.prepare(20_000, FILM, machines, c=FREE).seconds == pytest.approx(
        max(wanted, 20_000 * (FREE.stored + FREE.printed)), rel=0.15
    )


def test_one_worker_takes_the_sum_of_all() -> None:
    seconds = drawn("recorded", 3000)
    assert cost.replay(seconds, cost.Machines(1), 0.0, c=FREE)[0] == pytest.approx(seconds.sum())


def test_with_any_number_of_workers_the_one_process_remains() -> None:
    many = cost.predict(10**7, FILM, cost.Machines(10**6, nodes=10**4))
    assert many.bound == "driver"
    assert many.seconds >= many.driver
    twice = cost.predict(10**7, FILM, cost.Machines(2 * 10**6, nodes=2 * 10**4))
    assert twice.seconds == pytest.approx(many.seconds, rel=0.1)


def test_storage_without_limit_is_no_limit_and_a_slow_one_the_only() -> None:
    machines = cost.Machines(64, nodes=8)
    free = cost.predict(10**6, FILM, machines)
    assert cost.predict(10**6, FILM, replace(machines, storage=1e15)) == free
    slow = cost.predict(10**6, FILM, replace(machines, storage=1e6))
    assert slow.bound == "storage"
    assert slow.seconds == pytest.approx(10**6 * FILM.size / 1e6, rel=0.01)


@pytest.mark.parametrize("command", [cost.predict, cost.prepare])
def test_more_workers_are_never_slower_where_the_work_is_large(command) -> None:
    seconds = [command(10**7, FILM, cost.Machines(cores, nodes=cores)).seconds for cores in (1, 2, 4, 16, 64)]
    assert seconds == sorted(seconds, reverse=True)


@pytest.mark.parametrize("items", [1, 64, 4096, 4097, 20_000, 3_000_000])
def test_waves_are_those_of_the_cluster(items: int) -> None:
    assert list(cost.waves(items)) == [len(wave) for wave in cluster._ahead(iter(range(items)), cost.GROUP)]


def test_a_tail_is_between_nothing_and_two_groups() -> None:
    for name in ("recorded", "exponential", "few slow"):
        seconds = drawn(name, 500)
        tails = [cost.tail(seconds, workers) for workers in (1, 2, 8, 64, 10**5)]
        assert tails[0] == pytest.approx(0, abs=1e-9)
        assert tails == sorted(tails)
        assert tails[-1] < 2 * seconds.max()
    # Of equal groups each worker has half a one left on average, and of many workers one has nearly all of it.
    assert cost.tail([3.0] * 5, 8) == pytest.approx(3 * (8 / 9 - 1 / 2), rel=1e-3)


def test_gpus_take_the_network_from_the_cores() -> None:
    with_gpus = cost.predict(10**5, FILM, cost.Machines(64, gpus=2, rate=50.0))
    assert (with_gpus.network, with_gpus.gpu, with_gpus.bound) == (0, 2000, "GPUs")
    assert with_gpus.seconds > 1000
    assert cost.train(1000, cost.Machines(2, gpus=4, rate=100.0), epochs=10).gpu == 100


def test_draws_and_refused_scans_cost_what_they_cost() -> None:
    one, two = (cost.evaluate(10**5, findings=5, draws=draws).driver for draws in (1000, 3000))
    assert two - one == pytest.approx(2000 * 10**5 * 5 * cost.MEASURED.drawn)
    # The journal is written anew with every shard, so refused scans cost with the square of their number.
    few, many = (
        cost.prepare(scans, FILM, cost.Machines(2), refused=0.01).driver
        - cost.prepare(scans, FILM, cost.Machines(2)).driver
        for scans in (8192 * 100, 8192 * 1000)
    )
    assert many == pytest.approx(100 * few)


def test_its_examples_are_true() -> None:
    tried = doctest.testmod(cost, optionflags=doctest.ELLIPSIS)
    assert tried.attempted >= 8
    assert not tried.failed
