"""From a download to a dataset of uint8 shards, and from there to batches."""
