"""A captioner: what it is asked, what it answers, what that cost."""
