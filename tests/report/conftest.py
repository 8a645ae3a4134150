"""An evaluation to make pages of: drawn scores, with everything that `metrics.json` may hold."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from damcli.metrics import components, estimate
from damcli.metrics.calibration import Bin
from damcli.report import tables
from damcli.report.drawings import Band, Curves
from damcli.report.page import Extras, GalleryItem

HOSTILE = "<script>alert(\"x\")</script> & 'Ödem' größer 50 %"


class Example(NamedTuple):
    """What `page.write` takes."""

    document: dict[str, Any]
    curves: dict[str, Curves]
    extras: Extras


def share(value: float, n: int) -> dict[str, Any]:
    """A share of n with an interval that is near enough for a page."""
    half = 1.96 * math.sqrt(max(value * (1 - value), 1e-4) / n)
    return {"value": value, "low": max(value - half, 0.0), "high": min(value + half, 1.0), "why": None}


def nothing(why: str) -> dict[str, Any]:
    return {"value": None, "low": None, "high": None, "why": why}


def difference(value: float, half: float = 0.02) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "why": None}


def point(targets: Any, scores: Any, threshold: float) -> dict[str, Any]:
    called, positive = scores >= threshold, targets == 1
    hits, alarms = int((called & positive).sum()), int((called & ~positive).sum())
    misses, rejected = int((~called & positive).sum()), int((~called & ~positive).sum())
    return {
        "rule": "the threshold with the largest sensitivity + specificity",
        "threshold": threshold,
        "true_positives": hits,
        "false_positives": alarms,
        "true_negatives": rejected,
        "false_negatives": misses,
        "sensitivity": share(hits / (hits + misses), hits + misses),
        "specificity": share(rejected / (rejected + alarms), rejected + alarms),
        "ppv": share(hits / max(hits + alarms, 1), hits + alarms),
        "npv": share(0.98, 900),
        "prevalence": 0.02,
    }


def metrics_jsonl(findings: Sequence[str]) -> str:
    rng, records = np.random.default_rng(3), []
    for stage, epochs in ((1, 2), (2, 4)):
        for epoch in range(1, epochs + 1):
            for step in range(30):
                at = 30 * (epoch - 1) + step
                saddle = {"a": [0.5 + at / 400, None], "b": [0.2, 0.1], "alpha": [0.01 * at, 0.4]} if stage == 2 else {}
                saddle = {name: (values * 7)[: len(findings)] for name, values in saddle.items()}
                loss = float(np.exp(-at / 60) + rng.random() / 5)
                records.append({"event": "step", "stage": stage, "epoch": epoch, "step": at, "loss": loss, **saddle})
            aurocs = {
                name: None if name == "Fracture" else 0.7 + 0.04 * epoch + 0.01 * k for k, name in enumerate(findings)
            }
            records.append(
                {
                    "event": "epoch",
                    "stage": stage,
                    "epoch": epoch,
                    "loss": 1 / epoch,
                    "tune_auroc": aurocs,
                    "mean_tune_auroc": 0.71 + 0.04 * epoch,
                }
            )
    return "".join(json.dumps(record) + "\n" for record in records)


def picture(number: int, colour: bool = False) -> bytes:
    ramp = np.add.outer(np.arange(96), np.arange(96) * (1 + number % 3)) % 256
    pixels = np.stack([ramp, ramp // 2, 255 - ramp], axis=-1) if colour else ramp
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(out, "png")
    return out.getvalue()


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Example]:
    """Return a function that makes an example of some findings; `full` ones have every section, others the fewest.

    The finding Fracture has no positives.
    """

    def made(findings: Sequence[str], n: int = 600, full: bool = True, used: bool | None = False) -> Example:
        rng = np.random.default_rng(7)
        grid = np.linspace(0, 1, 101)
        found, curves, parts = {}, {}, []
        for k, name in enumerate(findings):
            targets = (rng.random(n) < 0.05 + 0.3 * rng.random()).astype(float) * (name != "Fracture")
            scores = 1 / (1 + np.exp(-(rng.normal(size=n) - 2 + (1 + k / 4) * targets)))
            part = components(targets, scores)
            parts.append(part)
            auroc = estimate([part])
            why = auroc.why
            positives, negatives = part.positives, part.negatives
            others = (
                {}
                if why
                else {
                    "roc_band": Band(grid, np.clip(grid**0.4 - 0.08, 0, 1), np.clip(grid**0.25 + 0.05, 0, 1)),
                    "precision_band": Band(grid, 0.5 - 0.4 * grid, 1 - 0.6 * grid),
                }
            )
            bins = [Bin(x, x**1.4, max(x**1.4 - 0.08, 0), min(x**1.4 + 0.08, 1), n // 10) for x in grid[5::11]]
            after = [Bin(x, x, max(x - 0.07, 0), min(x + 0.07, 1), n // 10) for x in grid[4::11]]
            if full and not why:
                others["reliability"] = {"as scored": bins, "after temperature": after}
            curves[name] = Curves.of(targets, scores, **others)
            brier = {"brier": share(0.12, n), "ece": share(0.06, n)}
            found[name] = {
                "positives": positives,
                "negatives": negatives,
                "uncertain": 7 * k,
                "unlabelled": 0,
                "prevalence": share(positives / n, n),
                "auroc": tables.document(auroc),
                "average_precision": nothing(why) if why else share(0.62, positives),
                "partial_auroc": {"max_false_positive_rate": 0.1, **(nothing(why) if why else share(0.7, positives))},
                "sensitivity_at_specificity": {"specificity": 0.9, **(nothing(why) if why else share(0.6, positives))},
                "operating": {"youden": point(targets, scores, 0.2), "sensitivity-0.9": point(targets, scores, 0.08)}
                if full and not why
                else None,
                "calibration": {
                    "chosen": "none" if why else "temperature",
                    "why": why or None,
                    "before": None if why else brier,
                    "after": {} if why else {"temperature": brier},
                }
                if full
                else None,
            }
        defined = [name for name in findings if found[name]["auroc"]["value"] is not None]
        mean = tables.document(estimate(parts))
        each = {
            name: {
                "auroc": found[name]["auroc"]["value"],
                "other_auroc": 0.8,
                "difference": difference(0.03 - 0.01 * k),
                "p": 0.0004 if k == 0 else 0.2,
                "p_holm": 0.002 if k == 0 else 0.6,
                "units": n,
            }
            for k, name in enumerate(defined)
        }
        reading = {
            reader: {
                "false_positive_rate": share(0.1 + 0.05 * k, n),
                "sensitivity": share(0.55 + 0.1 * k, 90),
                "model_sensitivity": 0.7,
                "difference": difference(0.15 - 0.1 * k, 0.1),
                "beaten": k < 2,
                "units": n,
            }
            for k, reader in enumerate(("reader-a", "reader-b", "reader-ü"))
        }
        groups = [
            {
                "group": group,
                "units": n // 2,
                "findings": {
                    name: {
                        "positives": 40 - 15 * k,
                        "negatives": 200,
                        "auroc": nothing("no positives") if name not in defined else share(0.85 - k / 10, 50),
                        "small": k == 1,
                    }
                    for name in findings
                },
            }
            for k, group in enumerate(("female", "male", "not known"))
        ]
        gap = {
            name: {"groups": ["female", "not known"], "difference": difference(0.2, 0.15), "p": 0.01, "why": None}
            if name in defined
            else {"groups": None, "difference": nothing("no positives"), "p": None, "why": "no positives"}
            for name in findings
        }
        document = {
            "schema_version": 2,
            "damcli": "0.1.0",
            "created": "2026-11-26T10:00:00+00:00",
            "subject": {"kind": "run", "path": "runs/aucm-densenet121"},
            "truth": {"path": "data/chexpert", "split": "valid", "fingerprint": "6b1c" * 16},
            "selection": {
                "used": used,
                "note": {
                    True: "the run's best epoch was chosen on these scans, so the figures flatter it",
                    False: "the run was neither trained nor selected on these scans",
                    None: "the run was trained on another dataset; whether they share patients is not known",
                }[used],
            },
            "unit": {"by": "scan", "reduce": {}, "rule": "each scan is judged by itself"},
            "scans": n,
            "units": n,
            "patients": n - 40,
            "failed": 2,
            "views": 1,
            "interval": {
                "level": 0.95,
                "auroc": "bootstrap over patients",
                "others": "bootstrap over patients",
                "cluster": "patient",
                "draws": 2000,
                "seed": 0,
            },
            "findings": found,
            "mean": {
                "findings": len(defined),
                "auroc": mean,
                "average_precision": share(0.62, n) if defined else nothing("no positives"),
            },
            "decisions": {"made_on": "the run's tune part", "tune_scans": 1200, "stored": True} if full else None,
            "comparison": {
                "subject": {"kind": "model", "path": "models/baseline.onnx"},
                "method": "paired bootstrap",
                "findings": each,
                "mean": {"difference": difference(0.02), "p": 0.01},
                "notes": [],
            }
            if full and defined
            else None,
            "readers": {
                "rule": "beaten: strictly above the reader’s point; a tie is not beaten.",
                "names": list(reading),
                "findings": dict.fromkeys(defined, reading),
                "nrbc": {**share(2.0, n), "high": 2.4, "of": 3},
                "notes": [],
            }
            if full and defined
            else None,
            "subgroups": [{"column": "sex", "groups": groups, "largest_gap": gap, "notes": ["3 scans have no sex"]}]
            if full
            else [],
            "gates": [
                {"require": "auroc>=0.8", "value": mean["value"], "why": None, "met": True},
                {"require": "Edema.auroc.low>=0.99", "value": 0.8, "why": None, "met": False},
            ]
            if full and defined
            else [],
            "notes": ["2 scans could not be scored (status failed) and are left out"],
        }
        if not full:
            return Example(document, curves, Extras())
        course = tmp_path_factory.mktemp("run") / "metrics.jsonl"
        course.write_text(metrics_jsonl(findings), encoding="utf-8")
        concerns = [
            {
                "kind": "images",
                "text": "3 images are in two splits, pixel for pixel",
                "leak": True,
                "scans": ("scan-id-77",),
            },
            {"kind": "column", "text": "the column view alone ranks the scans of Edema: AUROC 0.83", "leak": False},
        ]
        gallery = [
            GalleryItem(findings[0], kind, k % 2, 0.3 * k, picture(k), picture(k, True) if k < 3 else None)
            for k, kind in enumerate(("right", "right", "wrong", "wrong"))
        ]
        provenance = {
            "command": "damcli evaluate runs/aucm data/chexpert",
            "weights (SHA-256)": "ab12" * 16,
            "seed": "0",
        }
        return Example(
            document, curves, Extras(course, concerns, ("The audit looked at 600 scans.",), provenance, gallery)
        )

    return made


@pytest.fixture(scope="session")
def hostile() -> str:
    """A name that would be markup, were it not escaped."""
    return HOSTILE
