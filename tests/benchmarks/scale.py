"""Measure the constants of `cost.py` on this machine, and compare the model with runs on Ray.

- files: bytes and core-seconds of decoding of every kind of file, core-seconds of scoring and training.
- driver: what the one process does for a scan in `predict` and in `prepare`, and the whole of `prepare` beside the sum.
- tables: manifest, reading, ranks and draws of `evaluate`; memory of a process and for each scan.
- ray: to start, a wave, an actor, a group.
- replay: seconds for a scan, recorded while real files were decoded and scored, slept by 2, 4 and 8 workers of a local
  cluster, through the `waves.run` that `predict` uses, with its rows and its journal; beside what `cost.replay` says.
  "recorded": all kinds in turn. "skewed": chest films decoded, three of a hundred files a mammogram. "short": a
  five-hundredth of what was recorded, so that the one process is what is waited for.

Work of one process is measured by its CPU time, that of Ray by the wall clock, so other work distorts the latter.

    OMP_NUM_THREADS=1 python tests/benchmarks/scale.py ../shared/data
    OMP_NUM_THREADS=1 python tests/benchmarks/scale.py ../shared/data --parts ray replay
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path

import cost
import numpy as np
import polars as pl
import predict
import prepare
import train
import whole
from cost import Constants, Machines

from damcli import files
from damcli.bundle import journal, table
from damcli.bundle.pipeline import Scored, Scorer
from damcli.bundle.runtime import Model
from damcli.bundle.table import Columns, Row
from damcli.cluster import waves
from damcli.cluster.decoding import Unit
from damcli.cluster.session import Session, session
from damcli.data import audit, inputs, shards, writer
from damcli.data import journal as unfinished
from damcli.data.images import Contract
from damcli.data.inputs import Input
from damcli.data.labels import Policy
from damcli.data.scores import ScanTable
from damcli.data.sources import Source, table_of
from damcli.data.store import Dataset, Shard
from damcli.data.workers import Decoded, batches

PARTS = ("files", "driver", "tables", "ray", "replay")
LOT, SIDE = predict.BATCH, cost.SIDE
FILMS = ("chest_NIH_implicitVR.dcm", "chest_RSNA_fake_MONOCHROME1.dcm", "chest_RSNA_jpegbaseline.dcm")
MAMMOGRAM = "mammo_MG1_J2KI"


def best(work: Callable[[], int], rounds: int = 3, clock: Callable[[], float] = time.process_time) -> float:
    """Return the least seconds for each of what `work` says it did."""
    return min(predict.per_scan(clock, work) for _ in range(rounds))


class Bench:
    """What the parts share: a folder, the real files, a model, and the constants that were found."""

    def __init__(self, data: Path, place: Path) -> None:
        self.data, self.place, self.found = data, place, Constants()

    def keep(self, **found: float) -> None:
        """Keep constants that were found, and print them."""
        self.found = replace(self.found, **found)
        for name, value in found.items():
            print(f"  {name:13} {value:12.4g}", flush=True)

    @cached_property
    def files(self) -> list[Path]:
        return predict.radiographs(self.data / "dicom", self.place / "uncompressed")

    @cached_property
    def images(self) -> np.ndarray:
        return np.stack([predict.read_scan(file, predict.CONTRACT) for file in self.files])

    @cached_property
    def model(self) -> Path:
        predict.export("densenet121", self.images, path := self.place / "densenet121.onnx")
        return path

    def run_files(self) -> None:
        """What is shared out: decoding by kind of file, scoring, training."""
        (film,) = prepare.large_jpegs(self.data / "nih_cxr_512", 1, self.place / "films")
        print("files: bytes, and core-seconds to decode to 320 pixels")
        for file in [film, *self.files]:
            seconds = best(lambda file=file: predict.decoding([file]))
            print(f"  {file.name:46} {file.stat().st_size:12,} {seconds:8.4f}", flush=True)
        model = Model.open(self.model, "cpu", threads=1)
        model.score(self.images[:LOT])
        steps = best(lambda: len(train.bare_steps(16, 2, "32")) + 1, rounds=1)
        one = predict.folder_of(self.files[:1], 1, self.place / "one")
        self.keep(
            begin=min(predict.seconds(one, self.model, "--device", "cpu") for _ in range(4)),
            score=best(lambda: predict.scoring(model.score, self.images)),
            opened=best(lambda: Model.open(self.model, "cpu", threads=1).devices),
            train=steps / 16,
        )

    def run_driver(self, scans: int = 20_000) -> None:
        print("driver: the one process, a scan")
        folder = self.place / "many"
        folder.mkdir()
        for number in range(scans):
            (folder / f"patient{number:05}_view1_frontal.dcm").touch()
        given = inputs.given([str(folder)])
        listed = best(given.total)
        found = best(lambda: sum(1 for _ in given.find()))
        lots = self.lots(list(given.find()))
        groups = [lots[start : start + 8] for start in range(0, len(lots), 8)]
        results = [waves._packed([_scored(lot) for lot, _ in group]) for group in groups]
        sent = best(lambda: len([waves._packed(group, level=1) for group in groups]) * 8 * LOT)
        received = best(lambda: sum(len(waves._unpacked(one)) for one in results) * LOT)
        target = self.place / "scores.csv"
        columns = Columns(predict.FINDINGS)
        with journal.open(target, {}) as kept:
            for _ in kept.resume(iter([])):
                pass

            def appended() -> int:
                for lot, _ in lots:
                    kept.append(lot, _scored(lot).rows)
                return scans

            first = predict.per_scan(time.process_time, appended)
            row = journal.place(target).stat().st_size / scans
            made = predict.per_scan(
                time.process_time, lambda: table.write(target, "csv", columns, kept.rows()) or scans
            )
            kept.finish()
        tracemalloc.start()
        held = list(given.find())
        waiting = tracemalloc.get_traced_memory()[0] / len(held)
        tracemalloc.stop()
        self.keep(listed=listed, stat=found - listed, sent=sent, received=received, journal=first, table=made,
                  waiting=waiting, journal_row=row, table_row=target.stat().st_size / scans)  # fmt: skip
        self.of_prepare()

    def of_prepare(self, scans: int = 8192) -> None:
        rng, contract = np.random.default_rng(0), Contract(size=SIDE, channels=1)
        images = rng.integers(0, 256, (64, SIDE, SIDE), np.uint8)
        file = self.place / "shard.npy"

        def stored() -> int:
            with shards.creating(file, (SIDE, SIDE)) as shard:
                for image in islice(cycle(images), scans):
                    shard.append(image.copy())
            files.sha256(file)
            return scans

        packed = waves._packed([Unit(inputs.Place(file), Decoded(0, image, "ok", ""), "") for image in images])
        parts = tuple(
            unfinished.Part(shard=Shard(file=shards.name(n), scans=1, sha256="0" * 64), consumed=n, stamps="0" * 64)
            for n in range(2000)
        )
        saved = unfinished.Journal(inputs="0" * 64, parts=parts)
        refused = tuple((number, "the file is empty") for number in range(20_000))
        rejecting = saved.model_copy(update={"parts": (), "rejected": refused})
        self.keep(
            stored=best(stored),
            fetched=best(lambda: len(waves._unpacked(packed))),
            printed=best(lambda: sum(len(audit.image_print(image)) // 2 for image in images)),
            part=best(lambda: saved.save(self.place) or len(parts)),
            refused=best(lambda: rejecting.save(self.place) or len(refused)),
        )
        names = [f"patient{n:05}/view1.png" for n in range(scans)]
        findings = {f"finding {k}": pl.Series(rng.integers(0, 2, scans).astype(float)) for k in range(cost.FINDINGS)}
        places = [str(self.place / "many" / f"patient{n:05}_view1_frontal.dcm") for n in range(scans)]
        scan_table = table_of(names, places, findings, patient=names, study=names, split=["train"] * scans)
        policies = {name: Policy(uncertain="ignore", blank="missing") for name in findings}
        source = Source("drawn", self.place, scan_table, list(findings), policies, [])

        def decode(paths: Iterator[Path]) -> Iterator[Decoded]:
            for number, _ in enumerate(paths):
                yield Decoded(number, images[number % len(images)] ^ np.uint8(number // 64), "ok", "")

        start = time.process_time()
        for _ in writer.write(self.place / "dataset", source, contract, decode):
            pass
        spent = (time.process_time() - start) / scans
        parts = self.found.stored + self.found.printed + self.found.stat
        print(f"  prepare without decoding: {spent:.3g}, {spent / parts:.2f} of stored + printed + stat")
        dataset = Dataset.open(self.place / "dataset")
        rows = np.concatenate([rng.permutation(scans) for _ in range(2)])
        self.keep(
            loaded=best(lambda: sum(len(dataset.read(some)) for some in np.array_split(rows, len(rows) // 32))),
            known=dataset.manifest.estimated_size() / scans + 8 * cost.FINDINGS,
        )

    def run_tables(self, few: int = 50_000, many: int = 200_000) -> None:
        print("tables: manifest and evaluation, 14 findings")
        (_, _, small), (code, _, large) = (whole.manifest(self.place, number) for number in (few, many))
        size = (self.place / f"manifest{many}" / "manifest.parquet").stat().st_size
        self.keep(manifest=float(code.split()[0]) / many, row=(large - small) / (many - few), manifest_row=size / many)
        scores, labels = whole.scores_of(self.place, many)
        names = [f"finding {k}" for k in range(cost.FINDINGS)]

        def joined() -> int:
            truth = ScanTable.read(labels)
            truth.labels(names)
            return len(ScanTable.read(scores).scores(truth.ids, names).scores)

        # The whole command: with more scans, and with more draws.
        (_, short, least), (_, long, most), (_, drawing, _) = (
            whole.evaluation(self.place, *each) for each in ((few, 200), (many, 200), (many, 400))
        )
        drawn = (drawing - long) / (200 * many * cost.FINDINGS)
        table = best(joined, 1)
        ranked = ((long - short) / (many - few) - table) / cost.FINDINGS - 200 * drawn
        truth = (most - least) / (many - few)
        self.keep(joined=table, ranked=ranked, drawn=drawn, truth=truth, process=least - few * truth)

    def run_ray(self, groups: int = 64, slept: float = 0.5) -> None:
        print("ray: seconds; a worker is a process of this machine, and all of them share its cores")
        begun = time.perf_counter()
        with session(None, workers=2) as two:
            started = time.perf_counter() - begun
            cold, warm = (self.times(two, groups) for _ in range(2))
            # The third wave, of 256 groups without work: as fast as the one process hands them out.
            third = self.times(two, 448)[-256:]
            few = self.times(two, groups, slept)
        with session(None, workers=8) as eight:
            self.times(eight, groups)
            many = self.times(eight, groups, slept)
        group = max(0.0, (few[-1] - few[0]) / (groups / 2 - 0.5) - slept)
        # What is lost until all workers are at work: the later ones start while the first ones work.
        begins = [run[-1] - groups / workers * (slept + group) for run, workers in ((few, 2), (many, 8))]
        actor = (begins[1] - begins[0]) / 6
        self.keep(cluster=started + cold[-1] - warm[-1], wave=begins[0] - 2 * actor, actor=actor, group=group,
                  handed=(third[-1] - third[0]) / 255)  # fmt: skip

    def run_replay(self) -> None:
        recorded = self.record()
        rng = np.random.default_rng(0)
        films, slow = ([self.decoded[name] for name in names] for names in (FILMS, (MAMMOGRAM,)))
        sides = {
            "recorded": np.resize(recorded, 1000),
            "skewed": np.where(rng.random(6000) < 0.03, np.resize(slow, 6000), np.resize(films, 6000)),
            "short": np.resize(recorded, 60_000) / 500,
        }
        print("replay: seconds of a run, and what the model says")
        print(f"  {'':10} {'scans':>7} {'workers':>8} {'seen':>8} {'model':>8} {'ratio':>6}  waits for")
        for workers in (2, 4, 8):
            with session(None, workers=workers) as found:
                self.times(found, 64)
                # What begins and ends a wave here: so many processes start on the cores of one machine.
                begin = min(self.times(found, 64, 0.5)[-1] for _ in range(2)) - 64 / workers * (0.5 + self.found.group)
                c = replace(self.found, wave=begin, actor=0.0)
                for name, seconds in sides.items():
                    seen = self.slept(found, seconds)
                    lots = np.add.reduceat(seconds, np.arange(0, len(seconds), LOT))
                    driver = LOT * (c.sent + c.received + c.journal)
                    said, bound = cost.replay(lots, Machines(workers), driver, 8, c)
                    print(f"  {name:10} {len(seconds):7,} {workers:8} {seen:8.1f} {said:8.1f} {seen / said:6.2f}"
                          f"  {bound}", flush=True)  # fmt: skip

    def record(self, rounds: int = 3) -> np.ndarray:
        """Return the core-seconds of every scan: its own to decode, its share of its lot's to score."""
        model = Model.open(self.model, "cpu", threads=1)
        scorer, found = Scorer(model, LOT), []
        given = [Input(file.name, inputs.Place(file), "") for file in self.files]
        self.decoded: dict[str, float] = {}
        for turn in range(rounds):
            for start in range(0, len(given), LOT):
                lot, before, seconds = given[start : start + LOT], time.process_time(), []
                taken = batches((one.source for one in lot), model.info.contract, 0, LOT)
                for one in lot:
                    begun = time.process_time()
                    for _ in batches([one.source], model.info.contract, 0, 1):
                        pass
                    seconds.append(time.process_time() - begun)
                    self.decoded[one.name] = min(seconds[-1], self.decoded.get(one.name, 9.0))
                decoded = next(taken)
                before = time.process_time()
                scorer.score(lot, decoded)
                share = (time.process_time() - before) / len(lot)
                found += [own + share for own in seconds] if turn else []  # the first round warms up
        print(f"  recorded: {len(found)} scans, {np.mean(found):.3f} s of a core on average, {max(found):.3f} at most")
        return np.array(found)

    def slept(self, found: Session, seconds: np.ndarray) -> float:
        """Return how long a run takes whose workers sleep for the seconds of their scans."""
        made = [Input(f"patient{n:05}/view1_frontal.dcm", inputs.Place(Path("scans", f"{n}.dcm")), f"{n} {n}")
                for n in range(len(seconds))]  # fmt: skip
        lots, target = self.lots(made, seconds), self.place / "replayed.csv"
        start = time.perf_counter()
        with journal.open(target, {}) as kept:
            for _ in kept.resume(iter([])):
                pass
            stage = waves.Stage(_sleep, found.cpus)
            with closing(waves.run(found, iter(lots), 8, stage)) as results:
                for scored in results:
                    kept.append(scored.inputs, scored.rows)
            took = time.perf_counter() - start
            assert kept.holds == len(seconds), "scans are lost"
            kept.finish()
        return took

    def times(self, found: Session, groups: int, seconds: float = 0.0) -> list[float]:
        """Return when each result of a run came whose groups are one lot that takes so many seconds."""
        lots = [([], seconds)] * groups
        start = time.perf_counter()
        with closing(waves.run(found, iter(lots), 1, waves.Stage(_sleep, found.cpus))) as results:
            return [time.perf_counter() - start for _ in results]

    @staticmethod
    def lots(made: Sequence[Input], seconds: np.ndarray | None = None) -> list[tuple[list[Input], float]]:
        """Return inputs in lots, with the seconds that each takes."""
        each = np.zeros(len(made)) if seconds is None else seconds
        return [(list(made[n : n + LOT]), float(each[n : n + LOT].sum())) for n in range(0, len(made), LOT)]


def _sleep(lots: list[tuple[list[Input], float]]) -> list[Scored]:
    """Take as long for a group of lots as they were recorded to take."""
    time.sleep(sum(seconds for _, seconds in lots))
    return [_scored(lot) for lot, _ in lots]


def _scored(lot: list[Input]) -> Scored:
    # Nothing of this file's imports but these: actors would load torch to do nothing.
    scores = np.linspace(0.1, 0.9, 5, dtype=np.float32)
    return Scored(lot, [Row(one.name, "ok", "", scores) for one in lot])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of real scans")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    asked = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(asked.data, Path(place))
        for part in PARTS:
            if part in asked.parts:
                getattr(bench, f"run_{part}")()
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
