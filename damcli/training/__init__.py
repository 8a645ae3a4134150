"""Training: two stages into a run folder that can be stopped anywhere and resumed to the same bits."""
