"""damcli: train, judge and ship medical image classifiers by Deep AUC Maximization."""

import os

__version__ = "0.1.0"

# It is read when ONNX Runtime is imported, which would give the machine an id and send Microsoft what runs on it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
