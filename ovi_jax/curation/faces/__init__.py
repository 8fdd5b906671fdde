"""Face detection, tracking and crops."""
