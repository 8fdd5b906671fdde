"""Media of clips: decoding, measurements, stored artifacts."""
