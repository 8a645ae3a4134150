"""What `--metadata CSV` says of the scans beside their images: what the model takes, and whose they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from damcli import console
from damcli.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from damcli.bundle.schema import ModelInfo
    from damcli.bundle.table import Row
    from damcli.data.inputs import Input
    from damcli.data.metadata import Encoding


@dataclass(frozen=True)
class About:
    """By a scan's name: its row of the model's encoding (None for no table), and its patient and study.

    A scan without a row in the table is in neither; an id that is blank is "".
    """

    encoded: Mapping[str, NDArray[np.float32]] | None = None
    ids: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def read(info: ModelInfo, table: Path | None, scans: Iterable[Input], with_ids: bool) -> About:
    """Read what the table says of the scans; rows are joined by path (`data.joining`).

    Raises `UsageError` where neither the model nor the user has a use for it, and for a column that the model takes
    and the table lacks; `DataError` where it has a row of none of the scans, and as `ScanTable.read` and
    `joining.rows_of` do.
    """
    names = list(dict.fromkeys(info.encoding.names)) if info.encoding else []
    if table is None:
        if names:
            console.warn(f"the model also takes {', '.join(names)}: without --metadata all of it counts as missing")
        return About()
    if not names and not with_ids:
        fix = "leave it out (by study and by patient its columns patient and study are used)"
        raise UsageError("this model takes no metadata", where="--metadata", fix=fix)

    from damcli.data import joining, labels
    from damcli.data.scores import ScanTable, id_column

    rows = ScanTable.read(table)
    found = [(one.name, _file(one)) for one in scans]
    joined = joining.rows_of(found, rows.ids, table)
    if found and not joined:
        what = f"no row belongs to any of the files (the first row is {rows.ids[0]})" if rows.ids else "it has no rows"
        raise DataError(what, where=table, fix="its column `path` has to name the scans, as the table of scores does")
    if with_ids and len(joined) < len(found):
        console.warn(f"{len(found) - len(joined)} files have no row in {table}: header or folders say whose they are")
    if unused := len(rows.ids) - len(joined):
        console.note(f"{unused} rows of {table} belong to none of these files")
    encoded = None
    if info.encoding:
        spelled = labels.choose(names, rows.frame.columns, "column", table)
        chosen = rows.frame.select(rows.frame[own].alias(name) for own, name in zip(spelled, names, strict=True))
        values = info.encoding.encode(chosen, table)
        encoded = {name: values[row] for name, row in joined.items()}
    ids: dict[str, tuple[str, str]] = {}
    if with_ids:
        patients, studies = (id_column(rows.frame, column, table) for column in ("patient", "study"))
        if not names and patients is None and studies is None:
            raise UsageError("this table has neither a column patient nor a column study", where=table)
        ids = {
            name: (patients[row] if patients else "", studies[row] if studies else "") for name, row in joined.items()
        }
    return About(encoded, ids)


def _file(one: Input) -> Path:
    """Return where a scan lies; in an archive as if that were a folder."""
    archive = one.place.path
    if one.place.member is None and one.place.extent is None and one.place.content is None:
        return archive
    return archive / (one.name.rpartition(f"{archive.name}/")[2] or one.name)


class Doubts:
    """Counts what was not known of the scans that were scored."""

    def __init__(self, encoding: Encoding, encoded: Mapping[str, NDArray[np.float32]]) -> None:
        self.encoding, self.encoded = encoding, encoded
        self.without = 0
        self.missing: Counter[str] = Counter()
        self.unseen: Counter[str] = Counter()

    def add(self, rows: Sequence[Row]) -> None:
        """Count rows of the table of scores."""
        import numpy as np

        scored = [row.path for row in rows if row.status == "ok"]
        known = [self.encoded[name] for name in scored if name in self.encoded]
        self.without += len(scored) - len(known)
        for column, missing, unseen in self.encoding.doubts(np.stack(known)) if known else ():
            self.missing[column] += missing
            self.unseen[column] += unseen

    def words(self) -> Iterator[str]:
        """Yield, in words, what was not known."""
        if self.without:
            yield f"{self.without} scans have no row of metadata: all of it counted as missing"
        for column, missing in self.missing.items():
            if missing:
                yield f"{missing} scans have no {column}"
            if unseen := self.unseen[column]:
                yield f"{unseen} scans have a {column} that the model never met in training"
