"""The table of AOT reports in the scaling document."""

import pytest

from benchmarks import scaling
from ovi_jax import flag_profiles

STEP = {
  "program": "guided step of 64x96, 7 latent frames",
  "num_devices": 4,
  "device_kind": "TPU v5",
  "mesh": {"data": 2, "fsdp": 1, "context": 2, "tensor": 1},
  "peak_memory": 3 * 2**30,
  "hbm_capacity": 12 * 2**30,
  "flops_ratio": 1.25,
  "model_flops": 459e12,
  "exposed_ici_seconds": 0.1,
  "versions": {"jax": "0.10.2"},
  "bound_by": "hbm",
  "roofline_seconds": {"compute": 0.5, "hbm": 1.0, "ici": 0.25},
}
DECODING = STEP | {
  "program": "decoding of one latent frame",
  "roofline_seconds": {"compute": 2.0, "hbm": 1.0, "ici": 0.0},
}


def cells(**reports) -> list[list[str]]:
  head, line, *rows = scaling.table(reports).splitlines()
  assert head.count("|") == line.count("|")
  assert all(row.count("|") == head.count("|") for row in rows)
  return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def test_each_command_becomes_a_row():
  sampling, training = cells(sample=[STEP, DECODING], train=[STEP])
  shared = ["4 TPU v5, data 2 x context 2", "3.0, 25%", "1.250"]
  # A second of model FLOPs at peak takes 2.5 at 40 %.
  shared += ["0.50, 1.00, 0.25 (0.10)", "1.00 to 1.75", "2.50"]
  # 50 steps of 1 to 1.75 s, and 7 latent frames of 2 to 3 s.
  assert sampling == ["sample", *shared, "64 to 108"]
  assert training == ["train", *shared, ""]


def test_reports_without_versions_are_marked_as_older():
  old = {k: v for k, v in STEP.items() if k != "versions"}
  del old["exposed_ici_seconds"]
  ((name, *_, times, _, _, _),) = cells(train=[old])
  assert name == "train †" and times == "0.50, 1.00, 0.25 (0.25)"


def test_rows_that_compute_does_not_bound_are_named():
  fast = STEP | {"bound_by": "compute"}
  text = scaling.bound({"a": [fast], "b": [STEP, DECODING], "c": [fast]})
  assert text.endswith("compute, except `b` (HBM 1.00, compute 0.50 s).\n")
  assert scaling.bound({"a": [fast]}).endswith("by compute.\n")


def test_collectives_are_split_into_synchronous_and_asynchronous():
  profile = flag_profiles.flags_of("v5p", "train")
  sent = {"all-gather over fsdp": 6e9, "all-reduce over fsdp": 2e9}
  step = STEP | {
    "collective_bytes": sent,
    "async_bytes": {"all-gather over fsdp": 5e9},
    "collective_counts": {"sync": 1200, "async": 34},
    "flags": profile,
  }
  alone = step | {"collective_bytes": {}}
  head, _, row = scaling.collectives(
    {"old": [STEP], "one": [alone], "train": [step]}
  ).splitlines()
  assert row.count("|") == head.count("|")
  assert row == (
    "| train | v5p | 3.0, 5.0 | 1.0, 5.0 | 2.0, 0.0 | 0.0, 0.0 | 0.0, 0.0 |"
    " 1,200, 34 | 0.10 of 0.25 |"
  )


def test_all_training_steps_take_days():
  """40,000 steps of 2.5 s on 4 chips."""
  *_, row = scaling.days({"sample": [STEP], "train_a": [STEP]}).splitlines()
  assert row == "| train_a | 4 TPU v5 | 1.2 | 111 |"


def test_printed_commands_are_complete():
  assert scaling.printed("train_v6e_256").endswith(" --workdir=reports")
  assert scaling.printed("sample_960_v6e_1").endswith(" --out=reports")


def test_programs_that_exceed_hbm_are_marked():
  lost = {"peak_memory": None, "error": "16 GiB are too few"}
  ((_, chips, memory, *rest),) = cells(train=[STEP | lost])
  assert chips.startswith("4 TPU v5") and set(rest) == {""}
  assert memory == "does not fit: 16 GiB are too few"


def test_a_clip_of_unknown_length_is_refused():
  with pytest.raises(ValueError):
    cells(sample=[STEP | {"program": "guided step"}, DECODING])


def test_tables_are_written_between_their_markers():
  text = "a\n<!-- one -->\nold\n<!-- /one -->\nb\n<!-- two -->\n<!-- /two -->\n"
  for _ in range(2):
    text = scaling.filled(text, {"one": "new\n", "two": "x\n"})
  assert text == (
    "a\n<!-- one -->\nnew\n<!-- /one -->\nb\n<!-- two -->\nx\n<!-- /two -->\n"
  )
  with pytest.raises(ValueError, match="expected one <!-- three -->"):
    scaling.filled(text, {"three": ""})


def test_the_documents_have_the_markers():
  for document, names in scaling.DOCUMENTS.items():
    scaling.filled(document.read_text("utf-8"), dict.fromkeys(names, ""))


def test_the_documents_commands_can_be_copied_and_run():
  text = (scaling.DOCS / "explanation" / "scaling.md").read_text("utf-8")
  lines = text.split("<!-- commands -->\n```\n")[1].split("```")[0].splitlines()
  made = [n for n in scaling.CASES if (scaling.RESULTS / f"{n}.json").exists()]
  assert lines == [scaling.printed(name) for name in made]
  for line in lines:
    flag = "--workdir=" if " train.py " in line else "--out="
    assert line.count(flag) == 1, line
