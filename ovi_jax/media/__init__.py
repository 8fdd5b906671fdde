"""Media files: video, sound and images, read with bounds and written whole."""
