"""The paper's tables and figures again: grids of runs, their summaries, and a verdict for each claim."""
