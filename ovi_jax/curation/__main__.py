"""Curation: raw media to training records.

  python -m ovi_jax.curation --config=configs/curate.py
    --config.inputs="('FOLDER',)" --config.out=DIR
    [--only_pass=NAME] [--shards=A:B|I/N] [--retry_failed]
    [--beam -- BEAM OPTIONS]

The command is resumable: it computes only missing outputs and those affected by
changed settings. Cluster jobs divide a pass by shard ranges. Exit codes: 0
complete; 1 an error or failed shards, which are listed; 75 stopped by SIGTERM.
"""

if __name__ == "__main__":
  # Imported here: worker processes import this file and do not need it.
  from ovi_jax.curation import command

  command.start()
