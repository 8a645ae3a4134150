"""damcli: train, judge and ship medical image classifiers by Deep AUC Maximization."""

__version__ = "0.1.0"
