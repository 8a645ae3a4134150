"""The model card: what a person who is handed NAME.onnx needs to know, as Markdown."""

from __future__ import annotations

from damcli.bundle.schema import INPUT, METADATA, OUTPUT, ModelInfo


def text(info: ModelInfo, name: str) -> str:
    """Return the card of the model file `name`."""
    contract, parity = info.contract, info.parity
    kind = "grey" if contract.channels == 1 else "colour"
    shift = "no finding had both classes" if parity.auroc_difference is None else f"{parity.auroc_difference:.2g}"
    members = "\n".join(
        f"| {m.run} | {m.recipe} | {m.backbone} | {m.size} | {m.views} | {m.loss} | {m.seed} | {', '.join(m.findings)} "
        f"| {_short(m.dataset)} | {_short(m.weights_sha256)} | {_short(m.started_from)} |"
        for m in info.members
    )
    views = ""
    if any(m.views > 1 for m in info.members):
        views = """- So is test-time augmentation: a member's score is the mean over its views (see Members).
  These are the scan as it is and others drawn at export, the same for every scan: turned, shifted, scaled, sheared or
  flipped as in the member's training.
"""
    metadata = ""
    if encoding := info.encoding:
        names = ", ".join(dict.fromkeys(encoding.names))
        weights = ", ".join(f"{m.metadata.weight:g} in {m.run}" for m in info.members if m.metadata)
        metadata = f"""- `{METADATA}`: float32 (N, {encoding.width}), {names}: numbers standardised, text one-hot, with
  places for what is missing or was never met in training. How, the model's own metadata say; `damcli predict` does it
  (`--metadata CSV`). A member's score is that of the images mixed with that of the metadata, whose weight is {weights}.
"""
        metadata += "".join(f"- {leak}.\n" for leak in encoding.leaks)
    return f"""# {name}

Scores medical images for {len(info.findings)} finding(s): {", ".join(info.findings)}.
Made by damcli {info.damcli} on {info.created}, by Deep AUC Maximization or a loss it is compared with (see Members).

    damcli predict SCANS --model {name} --export csv

## Input and output
- `{INPUT}`: uint8 (N, {contract.size}, {contract.size}, {contract.channels}), any N; {kind} scans decoded by contract
  version {contract.version} (fit: {contract.fit}), which `damcli predict` does: other decoding gives other scores.
{metadata}\
- `{OUTPUT}`: float32 (N, {len(info.findings)}), one column per finding in the order above, in [0, 1]. With several
  members a finding's score is the mean over the members that have it.
- Scaling, grey to three channels, normalisation and each member's resizing are inside the file.
{views}
## Members
| run | recipe | backbone | size | views | loss | seed | findings | dataset | weights | started from |
|---|---|---|---|---|---|---|---|---|---|---|
{members}

(dataset: start of its fingerprint; weights: start of the SHA-256 of the checkpoint; started from: that of the file of
weights that training began with. The model's metadata hold them whole.)

## Agreement with PyTorch
On {parity.scans} real scans at export: largest difference of a score {parity.max_difference:.2g} (allowed: \
{parity.tolerance:g}), largest difference of an AUROC: {shift}.

## Operating points
{_points(info)}
## Use and limits
- Intended for research, for ranking scans, and for validation on data of the place where it would be used.
{_calibration(info)}
- Expect other results on other scanners, other patients and other views than those trained on. Measure before use:
  `damcli evaluate {name} DATASET`.{_drift(info, name)}
- It is no medical device and was not assessed as one. It must not decide about a patient.

## Licence
damcli (Apache-2.0) puts no terms on this model. Those of the scans it was trained on and of any weights that training
started from apply; whoever passes it on states them here.
"""


def _calibration(info: ModelInfo) -> str:
    """Say which scores are probabilities, of what, and which are none."""
    calibrated = info.decisions.calibration if info.decisions else {}
    rest = [finding for finding in info.findings if finding not in calibrated]
    if not calibrated:
        return "- A score ranks scans for one finding. It is no probability: nothing here is calibrated."
    assert info.decisions is not None
    methods = sorted({calibration.method for calibration in calibrated.values()})
    text = (
        f"- Calibration is inside the file ({', '.join(methods)}, fitted on {info.decisions.tune_scans} scans that were"
        f" kept out of training): the score of {', '.join(calibrated)} is meant as its probability among scans like"
        " those. Where a finding is rarer than there it is too high, where it is more frequent too low."
    )
    return text + (f" That of {', '.join(rest)} is no probability, it ranks scans." if rest else "")


def _points(info: ModelInfo) -> str:
    """Return which thresholds there are, what they were chosen on and were worth there, or why there are none."""
    made = info.decisions
    if made is None:
        return (
            "Thresholds: none yet. `damcli evaluate RUN --operating RULE` chooses them on scans kept out of training,\n"
            "and `damcli export` carries them. Choose none on the scans that you then judge by.\n"
        )
    notes = "".join(f"- {note}.\n" for note in made.notes)
    rows = "".join(
        f"| {finding} | {name} | {point.threshold:.6g} | {point.chosen_on.sensitivity:.3f} |"
        f" {point.chosen_on.specificity:.3f} | {point.chosen_on.positives} | {point.chosen_on.negatives} |\n"
        for name, points in made.points.items()
        for finding, point in points.items()
    )
    if not rows:
        return f"Thresholds: none.\n{notes}"
    score = "its score"
    if made.by != "scan":
        reduced = ", ".join(f"{rule} for {finding}" for finding, rule in made.reduce.items())
        score = f"the score that its scans have together ({reduced})"
    return f"""A {made.by} is called positive where {score}, as `{OUTPUT}` gives it, is at least
the threshold. Thresholds were chosen on {made.tune_scans} scans kept out of training. What they were worth there, as
shown, flatters them: measure them on your own scans before use.

| finding | chosen by | threshold | sensitivity | specificity | positives | negatives |
|---|---|---|---|---|---|---|
{rows}
{notes}"""


def _drift(info: ModelInfo, name: str) -> str:
    if info.reference is None:
        return ""
    return f"""
- Whether scans are like the {info.reference.scans} kept out of its training: `damcli evaluate {name} --drift SCANS`."""


def _short(digest: str | None) -> str:
    return f"`{digest[:12]}`" if digest else "n/a"
