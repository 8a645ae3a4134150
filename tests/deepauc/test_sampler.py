"""The samplers' promises, over random label tables."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from damcli.deepauc import BalancedSampler, UniformSampler

NAN = float("nan")
TARGETS = st.sampled_from([0.0, 0.0, 0.0, 1.0, 0.9, 0.2, NAN])


@st.composite
def samplers(draw, most=4):
    k = draw(st.integers(1, most))
    rows = draw(st.lists(st.tuples(*[TARGETS] * k), min_size=2, max_size=60))
    targets = np.array(rows)
    assume((((targets >= 0.5).any(0)) & ((targets < 0.5).any(0))).any())
    size, share = draw(st.integers(2, 16)), draw(st.floats(0.01, 0.99))
    return targets, BalancedSampler(targets, size, share, seed=draw(st.integers(0, 3)))


@given(samplers())
@settings(max_examples=150, deadline=None)
def test_balanced_batches(case):
    targets, sampler = case
    batches = sampler.batches(epoch=1)
    usable = [k for k in range(targets.shape[1]) if k not in sampler.skipped]
    assert len(batches) == len(sampler)
    assert len(batches) % len(usable) == 0
    for turn, batch in enumerate(batches):
        k = usable[turn % len(usable)]
        assert batch.dtype == np.int64
        assert 2 <= len(batch) <= sampler.batch_size
        positives = (targets[batch, k] >= 0.5).sum()
        assert 1 <= positives < len(batch)
        assert (targets[batch, k] < 0.5).sum() == len(batch) - positives  # none is missing for the turn's finding
    sizes = [len(batch) for batch in batches]
    assert max(sizes) - min(sizes) <= 1 + sampler.batch_size / 2
    drawn = np.unique(np.concatenate(batches))
    known = ~np.isnan(targets[:, usable]).all(1)
    assert drawn.tolist() == np.flatnonzero(known).tolist()
    assert sampler.left_out == (~known).sum()


@given(samplers(most=1))
@settings(max_examples=150, deadline=None)
def test_one_finding_evenly_drawn(case):
    """The leading class comes exactly once, the other as evenly as can be."""
    targets, sampler = case
    counts = np.bincount(np.concatenate(sampler.batches(0)), minlength=len(targets))
    classes = [counts[targets[:, 0] < 0.5], counts[targets[:, 0] >= 0.5]]
    assert any((c == 1).all() for c in classes)
    assert all(c.max() - c.min() <= 1 for c in classes)


@given(samplers())
@settings(max_examples=30, deadline=None)
def test_seed_and_epoch_decide(case):
    targets, sampler = case
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    again = BalancedSampler(targets, sampler.batch_size, 0.5, sampler.seed)
    same = BalancedSampler(targets, sampler.batch_size, 0.5, sampler.seed)
    again.batches(0)  # the epochs before leave no trace
    for mine, theirs in zip(again.batches(3), same.batches(3), strict=True):
        assert mine.tolist() == theirs.tolist()
    assert np.random.get_state()[1].tolist() == before


@pytest.mark.parametrize(("share", "expected"), [(0.5, 16), (0.25, 8), (0.2, 6), (0.001, 1), (0.999, 31)])
def test_share_of_positives(share, expected):
    targets = np.arange(3100) % 31 == 0
    for batch in BalancedSampler(targets, 32, share).batches(0):
        assert targets[batch].sum() == pytest.approx(expected, abs=1)
        assert targets[batch].mean() == pytest.approx(expected / 32, abs=0.03)


def test_epochs_and_seeds_differ():
    targets = np.arange(100) % 10 == 0
    sampler, other = BalancedSampler(targets, 8), BalancedSampler(targets, 8, seed=1)
    first = np.concatenate(sampler.batches(0)).tolist()
    assert first != np.concatenate(sampler.batches(1)).tolist()
    assert first != np.concatenate(other.batches(0)).tolist()


def test_prior_is_what_is_drawn():
    targets = np.array([1.0, 0.8] * 10 + [0.0, 0.1, NAN] * 60)
    sampler = BalancedSampler(targets, 8, 0.25, seed=3)
    assert len(sampler) == 20
    drawn = np.concatenate([targets[batch] for batch in sampler.batches(0)])
    assert sampler.prior == pytest.approx(drawn.mean(), abs=1e-9)
    with pytest.raises(ValueError, match="form='conditional'"):
        _ = BalancedSampler(np.eye(4), 4).prior


@given(samplers(), st.integers(2, 5))
@settings(max_examples=100, deadline=None)
def test_ranks_share_every_batch_evenly(case, ranks):
    targets, whole = case
    smallest = min(len(batch) for batch in whole.batches(0))
    share = (whole._slots[1]) / whole.batch_size
    make = partial(BalancedSampler, targets, whole.batch_size, share, whole.seed)
    if smallest < ranks:
        with pytest.raises(ValueError, match=f"each of {ranks} ranks a scan .* the smallest batch has {smallest}"):
            make(0, ranks)
        return
    parts = [make(rank, ranks) for rank in range(ranks)]
    assert {len(part) for part in parts} == {len(whole)}
    usable = [k for k in range(targets.shape[1]) if k not in whole.skipped]
    for turn, (batch, *dealt) in enumerate(zip(whole.batches(3), *(part.batches(3) for part in parts), strict=True)):
        assert sorted(np.concatenate(dealt)) == sorted(batch)
        positives = [(targets[part, usable[turn % len(usable)]] >= 0.5).sum() for part in dealt]
        for counts in (positives, [len(part) for part in dealt]):
            assert max(counts) - min(counts) <= 1
        assert min(len(part) for part in dealt) >= 1


@given(st.integers(1, 90), st.integers(2, 40), st.integers(2, 4))
@settings(max_examples=100, deadline=None)
def test_uniform_ranks(count, size, ranks):
    if min(len(batch) for batch in UniformSampler(count, size).batches(0)) < ranks:
        with pytest.raises(ValueError, match="ranks a scan"):
            UniformSampler(count, size, rank=0, ranks=ranks)
        return
    dealt = [UniformSampler(count, size, rank=rank, ranks=ranks).batches(1) for rank in range(ranks)]
    for whole, *parts in zip(UniformSampler(count, size).batches(1), *dealt, strict=True):
        assert sorted(np.concatenate(parts)) == sorted(whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("make", [lambda: UniformSampler(23, 5, seed=4), lambda: BalancedSampler(np.arange(40) < 9, 6)])
def test_a_restored_sampler_goes_on_where_it_was(make):
    whole, first = make(), make()
    expected = [batch for _ in range(3) for batch in whole]
    assert whole.state_dict() == {"epoch": 3, "step": 0}
    got = []
    for batch in first:
        got.append(batch)
        if len(got) == 2:
            break
    second = make()
    second.load_state_dict(first.state_dict())
    got += [batch for _ in range(3) for batch in second]
    assert got == expected
    assert expected == [batch.tolist() for epoch in range(3) for batch in make().batches(epoch)]


def test_a_sampler_feeds_torchs_loader():
    sampler = BalancedSampler(np.arange(40) % 8 == 0, 6, 0.5)
    scans = TensorDataset(torch.arange(40))
    loader = DataLoader(scans, batch_sampler=sampler)
    assert len(loader) == len(sampler)
    for epoch in range(2):
        got = [batch.tolist() for (batch,) in loader]
        assert got == [batch.tolist() for batch in sampler.batches(epoch)]


def test_findings_that_cannot_be_balanced_are_skipped():
    targets = np.array([[1, 0, NAN, 1], [0, 0, NAN, 1], [0, NAN, NAN, 1], [NAN, 0, 1, 1]] * 4, dtype=float)
    sampler = BalancedSampler(targets, 4)
    assert sampler.skipped == [1, 2, 3]
    assert sampler.left_out == 4


@given(st.integers(1, 200), st.integers(2, 40), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_uniform(count, size, seed):
    sampler = UniformSampler(count, size, seed)
    batches = sampler.batches(2)
    assert len(batches) == len(sampler) == -(-count // size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) > 1 or count == 1 or size == 2
    assert all(np.array_equal(a, b) for a, b in zip(batches, UniformSampler(count, size, seed).batches(2), strict=True))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: BalancedSampler([0, 0, 0], 2), "some finding"),
        (lambda: BalancedSampler([1, NAN], 2), "some finding"),
        (lambda: BalancedSampler(np.zeros((0, 2)), 2), r"hold a scan, got \(0, 2\)"),
        (lambda: BalancedSampler([0, 2], 2), r"targets must lie in \[0, 1\]"),
        (lambda: BalancedSampler([0, 1], 1), "batch_size must be at least 2, got 1"),
        (lambda: BalancedSampler([0, 1], 2, positives=1.0), r"positives must lie in \(0, 1\), got 1.0"),
        (lambda: UniformSampler(4, 2, rank=2, ranks=2), "rank must lie in .* rank 2 of 2"),
        (lambda: UniformSampler(0, 2), "count must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()
