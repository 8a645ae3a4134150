"""The errors that a user may see, each with its exit code.

Everything a user can cause or mend is a `DamcliError`; what is our own mistake is an `assert` or any other
exception, and ends with exit code 1 and a traceback.
"""

from __future__ import annotations


class DamcliError(Exception):
    """An error that says what happened, where, and last how to mend it.

    `what` is one sentence, `where` a path, key or scan, `fix` what the user can do. None of them may hold an
    identifier of a patient (names, birth dates, accession numbers).

    >>> str(DataError("the table has no column 'Path'", where="train.csv", fix="pass --image-column"))
    "the table has no column 'Path'\\n  where: train.csv\\n  fix: pass --image-column"
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        lines = [what]
        if where is not None:
            lines.append(f"  where: {where}")
        if fix is not None:
            lines.append(f"  fix: {fix}")
        super().__init__("\n".join(lines))


class UsageError(DamcliError, ValueError):
    """A wrong argument, option or setting (exit code 2)."""

    exit_code = 2


class DataError(DamcliError, ValueError):
    """Data or numbers that were refused: a broken dataset, a leak, a loss that is not finite (exit code 3)."""

    exit_code = 3


class MachineError(DamcliError, RuntimeError):
    """The machine lacks something: a GPU, an extra, disk space (exit code 5)."""

    exit_code = 5


class GateError(DamcliError):
    """A gate that the user or the project set was not met: parity, `--require` (exit code 6)."""

    exit_code = 6
