"""LoRAs as files: formats, application to weights, merging, extraction."""
