"""What is said of a prediction when it is done: how many scans, what was remarkable, what was not known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from damcli import console
from damcli.commands.predict.about import Doubts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from damcli.bundle.table import Row
    from damcli.data.metadata import Encoding

STATUSES = ("ok", "failed", "skipped")


class Tally:
    """Counts the rows of a table of scans, named as they are shown; memory does not grow with them."""

    def __init__(
        self,
        encoding: Encoding | None,
        encoded: Mapping[str, NDArray[np.float32]] | None,
        shown: Callable[[str], str],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.remarks: Counter[str] = Counter()
        self.before = 0  # those of a run that was cut off
        self.doubts = None
        if encoding is not None and encoded is not None:
            self.doubts = Doubts(encoding, {shown(name): row for name, row in encoded.items()})

    def add(self, rows: Sequence[Row]) -> None:
        """Count the rows."""
        for row in rows:
            self.counts[row.status] += 1
            if row.remark:
                self.remarks[row.remark] += 1
        if self.doubts:
            self.doubts.add(rows)

    def counted(self, rows: Sequence[Row]) -> Iterator[Row]:
        """Count the rows and yield them."""
        self.add(rows)
        yield from rows

    def say(self, provider: str, seconds: float) -> None:
        """Say what was done, and warn of what is doubtful."""
        done = self.counts.total()
        console.note(
            f"{done} scans: {self.counts['ok']} ok, {self.counts['failed']} failed, {self.counts['skipped']} skipped;"
            f" provider {provider}; {(done - self.before) / seconds:.3g} scans/s"
        )
        for remark, number in self.remarks.most_common():
            console.warn(f"{number} scans: {remark}")
        for doubt in self.doubts.words() if self.doubts else ():
            console.warn(doubt)

    def document(self) -> dict[str, int]:
        """Return the counts as JSON holds them."""
        return {"scans": self.counts.total(), **{status: self.counts[status] for status in STATUSES}}
