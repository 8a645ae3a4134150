"""The model card: what a person who is handed NAME.onnx needs to know, as Markdown."""

from __future__ import annotations

from damcli.bundle import openvino
from damcli.bundle.schema import CAMS, INPUT, METADATA, OUTPUT, ModelInfo


def text(info: ModelInfo, name: str) -> str:
    """Return the card of the model file `name`."""
    contract = info.contract
    kind = "grey" if contract.channels == 1 else "colour"
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
{_second_file(info)}
## Input and output
- `{INPUT}`: uint8 (N, {contract.size}, {contract.size}, {contract.channels}), any N; {kind} scans decoded by contract
  version {contract.version} (fit: {contract.fit}), which `damcli predict` does: other decoding gives other scores.
{metadata}\
- `{OUTPUT}`: float32 (N, {len(info.findings)}), one column per finding in the order above, in [0, 1]. With several
  members a finding's score is the mean over the members that have it{_weights(info)}.
{_maps(info)}\
- Scaling, grey to three channels, normalisation and each member's resizing are inside the file.
{views}
## Members
| run | recipe | backbone | size | views | loss | seed | findings | dataset | weights | started from |
|---|---|---|---|---|---|---|---|---|---|---|
{members}

(dataset: start of its fingerprint; weights: start of the SHA-256 of the checkpoint; started from: that of the file of
weights that training began with. The model's metadata hold them whole.)

## Agreement with PyTorch
{_agreement(info)}
## Operating points
{_points(info)}
## Use and limits
- {_intended(info)}
{_calibration(info)}
- Expect other results on other scanners, other patients and other views than those trained on. Measure before use:
  `damcli evaluate {name} DATASET`.{_drift(info, name)}
- It is no medical device and was not assessed as one. It must not decide about a patient.

## Licence
{_licence(info)}
"""


def _second_file(info: ModelInfo) -> str:
    if info.external is None:
        return ""
    return f"""
Its weights are in a second file, `{info.external.file}` ({info.external.bytes / 1e9:.1f} GB). Move, copy and
pass on both together, into one folder; the second one must keep its name.
"""


def _weights(info: ModelInfo) -> str:
    """Say what the members weigh in the mean, where not all weigh the same."""
    weights = [
        f"{', '.join(f'{finding} {weight:g}' for finding, weight in member.weights.items())} in {member.run}"
        for member in info.members
        if member.weights
    ]
    return f", weighted: {'; '.join(weights)}; 1 where nothing is said" if weights else ""


def _maps(info: ModelInfo) -> str:
    if info.cams is None:
        return ""
    shape = f"(N, {len(info.findings)}, {info.cams.height}, {info.cams.width})"
    return f"""- `{CAMS}`: float32 {shape}, class activation maps: what each place of a scan adds to a finding
  before the sigmoid; mean over the members as for the score. They show what the network looks at, not where a disease
  is. `damcli predict --heatmaps FOLDER` draws them over the scans.
"""


def _agreement(info: ModelInfo) -> str:
    """Say how far ONNX Runtime's scores are from PyTorch's, and OpenVINO's from those."""
    parity = info.parity
    allowed = "" if parity.tolerance is None else f" (allowed: {parity.tolerance:g})"
    lines = [
        f"On {parity.scans} real scans at export: largest difference of a score {parity.max_difference:.2g}{allowed},"
        f" largest difference of an AUROC: {_shift(parity.auroc_difference)}."
    ]
    if info.precision == "fp16":
        lines.append(
            "The networks compute in half precision (fp16), PyTorch did in full: scores differ a little, what counts is"
            " that their order stays."
        )
    if parity.forced:
        lines.append(f"**Exported by `--force`, although: {parity.forced}.** Measure it before use.")
    if found := parity.openvino:
        reason = openvino.refusal(parity)
        lines.append(
            f"OpenVINO {found.version} in {found.precision} beside ONNX Runtime, on the same scans: largest difference"
            f" of a score {found.max_difference:.2g}, of an AUROC: {_shift(found.auroc_difference)}. So"
            f" `damcli predict --device openvino` {f'refuses this model: {reason}' if reason else 'takes this model'}."
        )
    return "\n".join(lines) + "\n"


def _shift(difference: float | None) -> str:
    return "no finding had both classes" if difference is None else f"{difference:.2g}"


def _intended(info: ModelInfo) -> str:
    if info.intended_use:
        return f"Intended use, as stated at export: {_line(info.intended_use)}"
    return "Intended for research, for ranking scans, and for validation on data of the place where it would be used."


def _licence(info: ModelInfo) -> str:
    terms = f"As stated at export: {_line(info.licence)}\n\n" if info.licence else ""
    rest = "." if info.licence else "; whoever passes it on states them here."
    return f"""{terms}damcli (Apache-2.0) puts no terms on this model. Those of the scans it was trained on and of any
weights that training started from apply{rest}"""


def _line(text: str) -> str:
    """Return a text of the user's as one line, so that it cannot begin a heading or a table."""
    return " ".join(text.split())


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
