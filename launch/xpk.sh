#!/usr/bin/env bash
# Training on TPU slices of GKE with xpk: bash launch/xpk.sh [--dry-run]
# Edit these values. docs/how_to/pods.md creates the cluster.
set -euo pipefail
PROJECT=PROJECT
ZONE=ZONE
CLUSTER=CLUSTER
BUCKET=gs://BUCKET
IMAGE=REGION-docker.pkg.dev/PROJECT/ovi/ovi:tpu
TPU_TYPE=v6e-256
SLICES=1
WORKLOAD=ovi-train

# Exit codes: 75 interrupted (a checkpoint was saved unless the grace period
# expired), 76 a step exceeded its time limit, 1 an error. xpk restarts after 75
# and 76 and after signals, up to --max-restarts times. Processes that survive the
# loss of another host may return 1; then restart the workload by hand.
xpk workload create "$@" \
  --project="$PROJECT" --zone="$ZONE" --cluster="$CLUSTER" \
  --workload="$WORKLOAD" --docker-image="$IMAGE" \
  --tpu-type="$TPU_TYPE" --num-slices="$SLICES" \
  --max-restarts=100 --restart-on-exit-codes=75,76 \
  --termination-grace-period-seconds=120 \
  --env=JAX_COMPILATION_CACHE_DIR="$BUCKET/compiled" \
  --env=OVI_JAX_JOIN_SECONDS=1800 \
  --command="exec ovi-train --config=fusion --workdir=$BUCKET/runs/fusion \
    --config.data.sources=\"('$BUCKET/data/latents',)\" \
    --config.init_from.video=$BUCKET/weights/wan \
    --config.init_from.audio=$BUCKET/runs/audio \
    --config.mesh.data=$SLICES --config.grad_accum_steps=3 \
    --config.remat=attention --config.checkpoint_every_minutes=30 \
    --config.preemption_grace_seconds=80 --config.skip_bad_steps=20"
