"""A captioner: what it is asked, how, and what it answers."""
