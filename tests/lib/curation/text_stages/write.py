"""A sink stage for tests: writes all reversed lines to one file."""

import dataclasses

VERSION = 1
KIND = "sink"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  title: str = "lines"


def load(config):
  def write(every, folder):
    folder.mkdir()
    count = 0
    with open(folder / "all.txt", "w") as file:
      file.write(f"{config.title}\n")
      for clip, media in every:
        count += 1
        file.write(f"{clip.id} {media.read_artifact('turned').decode()}\n")
    return {"lines": count}

  return write
