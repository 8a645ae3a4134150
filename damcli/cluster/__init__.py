"""Beyond one machine: the work of `prepare` and `predict` on a Ray cluster (the extra `damcli[ray]`)."""
