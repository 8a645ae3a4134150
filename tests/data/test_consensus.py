"""What several readers list of one scan, combined by each rule: against counting by hand."""

import itertools
from collections import defaultdict

import numpy as np
import polars as pl
import pytest

from damcli.data.sources.consensus import combine

FINDINGS = ["Mass", "Edema", "Nodule"]
NOTHING = "No finding"


def table(rows) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=dict.fromkeys(("scan", "reader", "finding"), pl.String), orient="row")


def by_hand(rule: str, votes: list[bool]) -> float:
    share = sum(votes) / len(votes)
    if rule == "any":
        return float(any(votes))
    if rule == "mean":
        return share
    return -1.0 if share == 0.5 else float(share > 0.5)


@pytest.mark.parametrize("rule", ["any", "majority", "mean"])
@pytest.mark.parametrize("readers", [1, 2, 3, 4, 5])
def test_every_pattern_of_votes(rule: str, readers: int) -> None:
    """One scan for each pattern: who does not list the finding lists another, or nothing."""
    rows, expected = [], []
    for number, votes in enumerate(itertools.product([False, True], repeat=readers)):
        for reader, vote in enumerate(votes):
            rows.append((f"s{number}", f"r{reader}", "Mass" if vote else [None, "Edema"][reader % 2]))
        expected.append(by_hand(rule, list(votes)))
    made = combine(table(rows), ["Mass"], rule)
    assert made.labels["Mass"].to_list() == expected
    assert made.scans.to_list() == [f"s{number}" for number in range(2**readers)]
    assert made.readers.to_list() == [readers] * 2**readers
    assert made.disagree == 2**readers - 2


@pytest.mark.parametrize("rule", ["any", "majority", "mean"])
@pytest.mark.parametrize("seed", range(5))
def test_rows_at_random(rule: str, seed: int) -> None:
    """Readers differ in number, list findings twice, and write "No finding" beside others."""
    rng = np.random.default_rng(seed)
    rows = []
    for scan in range(60):
        for reader in rng.permutation(6)[: rng.integers(1, 7)]:
            rows += [(f"s{scan}", f"r{reader}", f) for f in rng.choice([*FINDINGS, NOTHING], rng.integers(1, 5))]
    rows = [rows[row] for row in rng.permutation(len(rows))]
    says = defaultdict(lambda: defaultdict(set))
    for scan, reader, finding in rows:
        says[scan][reader].add(finding)
    made = combine(table(rows), [*FINDINGS, NOTHING], rule, nothing=NOTHING)
    assert made.scans.to_list() == list(says)
    differ = set()
    for row, (scan, lists) in enumerate(says.items()):
        for finding in FINDINGS:
            votes = [finding in listed for listed in lists.values()]
            assert made.labels[finding][row] == by_hand(rule, votes)
            differ |= {scan} if len(set(votes)) > 1 else set()
        free = [listed == {NOTHING} for listed in lists.values()]
        assert made.labels[NOTHING][row] == (all(free) if rule == "any" else by_hand(rule, free))
        differ |= {scan} if len(set(free)) > 1 else set()
        assert made.readers[row] == len(lists)
    assert made.disagree == len(differ)


def test_a_scan_is_never_both_normal_and_not() -> None:
    """By `any` one reader in three is enough for a mass, and then two who saw nothing do not make the scan normal."""
    rows = table([("s", "a", "Mass"), ("s", "b", NOTHING), ("s", "c", NOTHING)])
    found = {rule: combine(rows, ["Mass", NOTHING], rule, NOTHING).labels for rule in ("any", "majority", "mean")}
    assert {rule: [labels["Mass"][0], labels[NOTHING][0]] for rule, labels in found.items()} == {
        "any": [1, 0],
        "majority": [0, 1],
        "mean": [1 / 3, 2 / 3],
    }


def test_a_finding_that_nobody_lists_is_absent_and_one_that_is_not_asked_for_still_counts() -> None:
    rows = table([("s", "a", "Mass"), ("t", "a", None)])
    labels = combine(rows, ["Edema", NOTHING], "majority", NOTHING).labels
    assert labels["Edema"].to_list() == [0, 0]
    assert labels[NOTHING].to_list() == [0, 1]


@pytest.mark.parametrize("make", ["conditional", "prior", "ce", "focal"])
def test_to_train_on_the_mean_of_readers_is_to_train_on_each_of_them(make: str) -> None:
    torch = pytest.importorskip("torch")
    from damcli.deepauc.losses import AUCMarginLoss, CrossEntropyLoss, FocalLoss

    votes = np.random.default_rng(0).integers(0, 2, (40, 3)).astype(float)
    rows = [(f"s{scan}", f"r{reader}", "Mass" if votes[scan, reader] else None) for scan, reader in np.ndindex(40, 3)]
    shares = combine(table(rows), ["Mass"], "mean").labels["Mass"].to_numpy()
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=(40, 1)))
    loss = {
        "conditional": lambda: AUCMarginLoss(1),
        "prior": lambda: AUCMarginLoss(1, form="prior", prior=votes.mean()),
        "ce": CrossEntropyLoss,
        "focal": FocalLoss,
    }[make]()
    soft = loss(logits, torch.tensor(shares[:, None]))
    each = loss(logits.repeat_interleave(3, 0), torch.from_numpy(votes.reshape(-1, 1)))
    assert soft.item() == pytest.approx(each.item(), rel=1e-9)
