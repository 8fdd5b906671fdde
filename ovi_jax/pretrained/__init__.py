"""A directory of converted weights: text encoder, VAEs, vocoder, denoiser."""
