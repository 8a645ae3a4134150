"""Several readers of one scan: what they list becomes one label of each scan and finding, by a stated rule.

`any`: positive if one reader lists the finding. `majority`: positive if more than half of them do, negative if fewer
do, and uncertain (-1) if just half do: a tie is no answer, and only even numbers of readers can have one. `mean`: the
share of the readers who list it, in [0, 1]: a soft label, which training takes as it is; it is positive in evaluation
above 0.5, negative below, and uncertain at 0.5, so that it counts as `majority` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import polars as pl

Rule = Literal["any", "majority", "mean"]


class Consensus(NamedTuple):
    """A label of every scan and finding: `scans` by their first rows, `labels` as in `Source`, both of one length.

    `readers` is the number of readers of each scan, `disagree` how many scans they disagree on, in any finding.
    """

    scans: pl.Series
    labels: dict[str, pl.Series]
    readers: pl.Series
    disagree: int


def combine(rows: pl.DataFrame, findings: Sequence[str], rule: Rule, nothing: str | None = None) -> Consensus:
    """Combine rows of text (scan, reader, finding), any number of which may be of one scan, reader and finding.

    A reader who has a row of a scan has read it, also where `finding` is null, and what he does not list he holds to
    be absent. `nothing` is the finding that says that there is no other: a reader says so by listing no other one,
    whatever else he writes, and it is labelled as the opposite of "a reader lists something": by `any` it is positive
    if no reader lists anything.

    >>> rows = pl.DataFrame({"scan": ["s", "s", "s"], "reader": ["a", "b", "b"], "finding": [None, "Mass", "Mass"]})
    >>> [combine(rows, ["Mass"], rule).labels["Mass"].to_list() for rule in ("any", "majority", "mean")]
    [[1.0], [-1.0], [0.5]]
    """
    listed = pl.col("finding").fill_null("")
    votes = rows.group_by("scan", maintain_order=True).agg(
        pl.col("reader").n_unique().alias("readers"),
        *(
            pl.col("reader")
            .filter((listed != "") & (listed != nothing) if finding == nothing else listed == finding)
            .n_unique()
            .alias(f"votes:{finding}")
            for finding in findings
        ),
    )
    count, differ = pl.col("readers"), pl.lit(False)
    labels = {}
    for finding in findings:
        given = pl.col(f"votes:{finding}")
        differ |= (given > 0) & (given < count)
        if finding != nothing:
            label = _RULES[rule](given / count)
        else:
            free = (count - given) / count
            label = (free == 1).cast(pl.Float64) if rule == "any" else _RULES[rule](free)
        labels[finding] = votes.select(label.alias(finding)).to_series()
    return Consensus(votes["scan"], labels, votes["readers"], int(votes.select(differ.sum()).item()))


# What becomes of the share of the readers who list a finding.
_RULES: dict[Rule, Callable[[pl.Expr], pl.Expr]] = {
    "any": lambda share: (share > 0).cast(pl.Float64),
    "majority": lambda share: pl.when(share == 0.5).then(-1.0).otherwise((share > 0.5).cast(pl.Float64)),
    "mean": lambda share: share,
}
