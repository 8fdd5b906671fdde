"""The command `ovi-convert` in a clone; see ovi_jax/commands/convert.py."""

if __name__ == "__main__":
  # Imported here: worker processes import this file and do not need it.
  from ovi_jax.commands import convert

  convert.start()
