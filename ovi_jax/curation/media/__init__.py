"""Pictures and sound of clips: decoded, measured, kept."""
