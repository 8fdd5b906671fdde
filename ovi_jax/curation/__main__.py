"""From raw media to the records that training reads.

  python -m ovi_jax.curation --config=configs/curate.py
    --config.inputs="('FOLDER',)" --config.out=DIR
    [--only_pass=NAME] [--shards=A:B|I/N] [--retry_failed]
    [--beam -- BEAM'S OPTIONS]

Run the same command again to go on where it was stopped, or after a setting was
changed: what depends on it is done again, and nothing else. Jobs of a cluster
share a pass by ranges of shards. Exit codes: 0 done, 75 told to stop
(SIGTERM), 1 an error, or shards that could not be done; they are named.
"""

if __name__ == "__main__":
  # Here, as worker processes import this file again and need none of it.
  from ovi_jax.curation import command

  command.start()
