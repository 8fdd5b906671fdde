"""The command `ovi-train` in a clone; see ovi_jax/commands/train.py."""

if __name__ == "__main__":
  # Imported here: worker processes import this file and do not need it.
  from ovi_jax.commands import train

  train.start()
