"""The paper's experiments on data at hand: its toy figure, its benchmark table, its ablations."""
