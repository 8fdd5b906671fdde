"""Write clips of the world as a dataset that training reads.

  python -m ovi_jax.synthetic.world --out=DIR [--train=4000 --test=64 --seed=0]
    [--what=clips|two_balls|sounds] [--pairs=seen|held_out|all] [--size=64]

The dataset has mp4 and PCM and no latents yet: `ovi_jax.data.encode` adds
them.
"""

from absl import flags

from ovi_jax import cli
from ovi_jax import storage
from ovi_jax.synthetic import records
from ovi_jax.synthetic.world import world

FLAGS = flags.FLAGS


def main() -> None:
  cli.require_flags(FLAGS, out="DIR")
  made = world.World(
    seed=FLAGS.seed, size=FLAGS.size, what=FLAGS.what, pairs=FLAGS.pairs
  )
  counts = {"train": FLAGS.train, "test": FLAGS.test}
  records.write(storage.locate(FLAGS.out), made, counts)
  print(f"wrote {FLAGS.out}")


if __name__ == "__main__":
  flags.DEFINE_string("out", "", "Directory to write.")
  flags.DEFINE_integer("train", 4000, "Number of training clips.")
  flags.DEFINE_integer("test", 64, "Number of held-out clips.")
  flags.DEFINE_integer("seed", 0, "Seed of the world.")
  flags.DEFINE_integer("size", 64, "Height and width of the frames.")
  flags.DEFINE_enum(
    "what",
    world.CLIPS,
    world.WHAT,
    "All clips, clips of two balls only, sounds only, or speaking faces only.",
  )
  flags.DEFINE_enum(
    "pairs",
    world.SEEN,
    (world.SEEN, world.UNSEEN, world.ALL),
    "Pairs of a colour and a sound: trained, held out, or all.",
  )
  cli.run(main)
