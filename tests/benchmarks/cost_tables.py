"""Print the tables of docs/scale.md: what `cost.py` says of 1e3 to 1e8 scans.

python tests/benchmarks/cost_tables.py
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from cost import (
    CHEST,
    DRAWS,
    EPOCHS,
    FINDINGS,
    KINDS,
    MEASURED,
    SIDE,
    Cost,
    Machines,
    evaluate,
    predict,
    prepare,
    train,
)

SIZES = tuple(10**power for power in range(3, 9))
SECONDS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
BYTES = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"))
LOCAL, MANY = Machines(16, storage=2e9), Machines(256, nodes=16, storage=2e9)
MEMORY = 64e9  # that a machine is taken to have


def amount(value: float, units: Sequence[tuple[float, str]]) -> str:
    """Return a value in the largest unit that it fills.

    >>> amount(7200, SECONDS), amount(0.2, SECONDS), amount(1.5e9, BYTES)
    ('2.0 h', '0.2 s', '1.5 GB')
    """
    size, name = next((unit for unit in units if value >= unit[0]), units[-1])
    return f"{value / size:,.{0 if value / size >= 20 else 1}f} {name}"


def bottleneck(cost: Cost) -> str:
    """Return what stops or slows a command first."""
    return "memory" if cost.memory > MEMORY else cost.bound


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table of Markdown."""
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def main() -> None:
    size = [f"1e{round(math.log10(scans))}" for scans in SIZES]
    rows = []
    for name, kind in KINDS.items():
        many = Machines(10**5, nodes=10**4)
        busy = [(kind.decode + score) * 10**7 / command(10**7, kind, many).driver
                for command, score in ((predict, MEASURED.score), (prepare, 0.0))]  # fmt: skip
        rows.append([name, amount(kind.size, BYTES), f"{1000 * kind.decode:.0f} ms", *(f"{one:,.0f}" for one in busy)])
    show("Kinds", ("file", "bytes", "decoding", "cores that predict keeps busy", "prepare"), rows)
    kind = KINDS[CHEST]
    for name, command in (("predict", predict), ("prepare", prepare)):
        found = [(command(scans, kind, LOCAL, ray=False), command(scans, kind, MANY)) for scans in SIZES]
        show(
            f"{name}, {CHEST}",
            ("scans", "read", "written", "decoding", "network", "one process", "memory", "16 cores, local", "first",
             "256 cores, Ray", "first"),
            [[n, amount(two.read, BYTES), amount(two.written, BYTES), amount(two.decode, SECONDS),
              amount(two.network, SECONDS) if two.network else "", amount(two.driver, SECONDS),
              amount(two.memory, BYTES), amount(one.seconds, SECONDS), bottleneck(one), amount(two.seconds, SECONDS),
              bottleneck(two)] for n, (one, two) in zip(size, found, strict=True)],
        )  # fmt: skip
    found = [train(scans, LOCAL) for scans in SIZES]
    show(
        f"train, {EPOCHS} epochs",
        ("scans", "read", "network", "loading", "memory", "16 cores", "first", "images/s at which storage is first"),
        [[n, amount(one.read, BYTES), amount(one.network, SECONDS), amount(one.driver, SECONDS),
          amount(one.memory, BYTES), amount(one.seconds, SECONDS), bottleneck(one),
          f"{LOCAL.storage / SIDE**2:,.0f}"] for n, one in zip(size, found, strict=True)],
    )  # fmt: skip
    found = [evaluate(scans, cores=16) for scans in SIZES]
    show(
        f"evaluate, {FINDINGS} findings, {DRAWS} draws",
        ("scans", "read", "core-time", "memory", "16 cores", "first"),
        [[n, amount(one.read, BYTES), amount(one.driver, SECONDS), amount(one.memory, BYTES),
          amount(one.seconds, SECONDS), bottleneck(one)] for n, one in zip(size, found, strict=True)],
    )  # fmt: skip


if __name__ == "__main__":
    main()
