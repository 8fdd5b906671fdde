"""Statistics of pairwise preferences, in float64 on numpy."""
