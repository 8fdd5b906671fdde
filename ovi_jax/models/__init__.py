"""Networks: fusion DiT, text encoder, VAEs, vocoder."""
