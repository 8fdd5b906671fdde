"""The command `ovi-sample` in a clone; see ovi_jax/commands/sample.py."""

if __name__ == "__main__":
  # Imported here: worker processes import this file and do not need it.
  from ovi_jax.commands import sample

  sample.start()
