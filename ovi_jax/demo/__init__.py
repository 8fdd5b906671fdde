"""The small Ovi that comes with the package, and how it was made."""
