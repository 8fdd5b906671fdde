"""Parsing of HLO text, and costs per executed instruction."""

import jax
import jax.numpy as jnp
import pytest

from ovi_jax.aot import collectives
from ovi_jax.aot import costs
from ovi_jax.aot import hlo
from ovi_jax.sharding import mesh as meshes

# Lines as XLA prints them for TPUs, shortened.
TPU = """\
HloModule jit_step

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %w = bf16[8,8]{1,0:T(8,128)(2,1)S(1)} constant({...})
  %y = bf16[4,8]{1,0:T(8,128)(2,1)} convolution(%x, %w), dim_labels=bf_io->bf
  %sum = bf16[4,8]{1,0:T(8,128)(2,1)} all-reduce(%y), channel_id=1, \
replica_groups=mesh['axis_0'=2,'axis_1'=2], device_ids=([2,2]T(1,0)) \
{'axis_0'}, use_global_device_ids=true, to_apply=%add
  ROOT %t = (s32[]{:T(128)}, bf16[4,8]{1,0}) tuple(%i, %sum)
}

%condition (p: (s32[], bf16[4,8])) -> pred[] {
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %n = s32[]{:T(128)} constant(30)
  ROOT %less = pred[]{:T(512)} compare(%i, %n), direction=LT
}

ENTRY %main (a: bf16[4,8], q: bf16[2,64,128]) -> bf16[4,8] {
  %a = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %q = bf16[2,64,128]{2,1,0} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %splash_mha_fwd_segmented.1 = (f32[64,128]{1,0}, bf16[2,64,128]{2,1,0}) \
custom-call(%zero, %q, %q, %q), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 16, \\"block_kv\\": 64, \
\\"block_kv_dkv\\": 32}"
}}, metadata={op_name="attend"}
  %start = (s32[]{:T(128)}, bf16[4,8]{1,0}) tuple(%zero, %a)
  %loop = (s32[]{:T(128)}, bf16[4,8]{1,0}) while(%start), \
condition=%condition, body=%body
  ROOT %out = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
"""


def test_a_tpu_program():
  found = costs.count(hlo.parse(TPU))
  products = 30 * 2 * 4 * 8 * 8  # of the loop
  kernel = 2 * 2 * (2 * 64 * 128) * 64  # two products of queries by keys
  assert found.flops == products + kernel
  # Half of the all-reduced bytes, twice, thirty times.
  assert found.collective_bytes == {("all-reduce", (0, 1)): 30 * 4 * 8 * 2}
  assert collectives.mesh_axes((0, 2), {"data": 2, "context": 2}) == ("data",)


def test_repeated_kernel_reads_are_counted():
  """Blocks, in the kernel's metadata, are 16 queries or 32 keys."""
  whole = TPU.replace(": 16,", ": 64,").replace(": 32}", ": 64}")
  once = costs.count(hlo.parse(whole)).bytes_accessed
  one = 2 * 64 * 128 * 2  # bytes of the queries, and of all else
  # Keys and values for each of four blocks of queries.
  assert costs.count(hlo.parse(TPU)).bytes_accessed == once + 2 * one * 3
  text = TPU.replace("splash_mha_fwd", "splash_mha_dkv")
  # Queries for each of two blocks of keys; keys and values once.
  assert costs.count(hlo.parse(text)).bytes_accessed == once + one


def test_self_permutations_are_not_counted():
  """A device alone in its group sends nothing; the largest group counts."""
  assert not costs.count(hlo.parse(permuted("{0,0},{1,1}"))).collective_bytes
  found = costs.count(hlo.parse(permuted("{0,0},{1,2},{2,1}"))).collective_bytes
  assert found == {("collective-permute", (1, 2)): 64}
  with pytest.raises(ValueError, match="all devices"):
    collectives.replica_groups("replica_groups={}, x=1")


def permuted(pairs: str) -> str:
  return f"""HloModule m

ENTRY %main (a: bf16[4,8]) -> bf16[4,8] {{
  %a = bf16[4,8]{{1,0}} parameter(0)
  ROOT %p = bf16[4,8]{{1,0}} collective-permute(%a), channel_id=7, \
source_target_pairs={{{pairs}}}
}}
"""


def test_an_overlapped_collective_is_counted_once():
  """XLA writes it into each fusion that runs while it is under way."""
  part = """
%part.N (p: bf16[4,8]) -> bf16[8,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %g = bf16[8,8]{1,0} all-gather(%p), channel_id=7, \
replica_groups=[1,2]<=[2], dimensions={0}
}
"""
  fusion = "  %f.N = bf16[8,8]{1,0} fusion(%a), kind=kCustom, calls=%part.N\n"
  text = "HloModule a\n" + "".join(part.replace("N", n) for n in "12")
  text += """
ENTRY %main (a: bf16[4,8]) -> bf16[4,8] {
  %a = bf16[4,8]{1,0} parameter(0)
"""
  text += fusion.replace("N", "1") + fusion.replace("N", "2")
  text += "  ROOT %z = bf16[4,8]{1,0} copy(%a)\n}\n"
  assert costs.count(hlo.parse(text)).collective_bytes == {
    ("all-gather", (0, 1)): 64
  }
  found = costs.count(hlo.parse(text))
  assert found.async_bytes == found.collective_bytes
  assert (found.sync_count, found.async_count) == (0, 1)
  two = text.replace("channel_id=7", "channel_id=8", 1)
  assert costs.count(hlo.parse(two)).collective_bytes == {
    ("all-gather", (0, 1)): 128
  }


def test_collectives_are_counted_as_sync_or_async():
  """Of a loop of three: one gather that is waited for, one that is started and
  done, one within an async computation."""
  text = """HloModule a

%wrapped (p: bf16[4,8]) -> bf16[8,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %g = bf16[8,8]{1,0} all-gather(%p), channel_id=3, \
replica_groups=[1,2]<=[2], dimensions={0}
}

%body (t: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %t = (s32[], bf16[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %a = bf16[4,8]{1,0} get-tuple-element(%t), index=1
  %sync = bf16[8,8]{1,0} all-gather(%a), channel_id=1, \
replica_groups=[1,2]<=[2], dimensions={0}
  %start = (bf16[4,8]{1,0}, bf16[8,8]{1,0}) all-gather-start(%a), \
channel_id=2, replica_groups=[1,2]<=[2], dimensions={0}
  %done = bf16[8,8]{1,0} all-gather-done(%start)
  %async = ((bf16[4,8]{1,0}), bf16[8,8]{1,0}) async-start(%a), calls=%wrapped
  %ended = bf16[8,8]{1,0} async-done(%async)
  ROOT %out = (s32[], bf16[4,8]{1,0}) tuple(%i, %a)
}

%condition (t: (s32[], bf16[4,8])) -> pred[] {
  %t = (s32[], bf16[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: bf16[4,8]) -> bf16[4,8] {
  %a = bf16[4,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %t = (s32[], bf16[4,8]{1,0}) tuple(%zero, %a)
  %loop = (s32[], bf16[4,8]{1,0}) while(%t), condition=%condition, body=%body
  ROOT %z = bf16[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""
  found = costs.count(hlo.parse(text))
  assert (found.sync_count, found.async_count) == (3, 6)
  key = ("all-gather", (0, 1))
  assert found.collective_bytes == {key: 3 * 3 * 64}
  assert found.async_bytes == {key: 3 * 2 * 64}


def test_trip_counts_of_unrolled_loops_are_found():
  """XLA's own loops over messages: unrolled by two, and of unsigned numbers."""
  text = TPU.replace("s32[]", "u32[]").replace(
    "ROOT %t = (u32[]{:T(128)}, bf16[4,8]{1,0}) tuple(%i, %sum)",
    "%two = u32[]{:T(128)} constant(2)\n"
    "  %next = u32[]{:T(128)} add(%i, %two)\n"
    "  ROOT %t = (u32[]{:T(128)}, bf16[4,8]{1,0}) tuple(%next, %sum)",
  )
  program = hlo.parse(text)
  loop = program.computations[program.entry].by_name["loop"]
  assert program.trip_count(loop) == 15


def test_an_async_slice_counts_the_slice_only():
  text = """HloModule a

ENTRY %main (a: s8[1000]) -> s8[100] {
  %a = s8[1000]{0} parameter(0)
  %s = ((s8[1000]{0}), s8[100]{0:T(128)S(1)}, s32[]{:S(2)}) slice-start(%a), \
slice={[0:100]}
  ROOT %d = s8[100]{0:T(128)S(1)} slice-done(%s)
}
"""
  assert costs.count(hlo.parse(text)).bytes_accessed == 100
  into_main = text.replace("S(1)", "")
  assert costs.count(hlo.parse(into_main)).bytes_accessed == 200


def test_a_slice_of_an_operand_in_another_layout_counts_the_slice_only():
  """As in the product with an 8-bit kernel of one block."""
  text = """HloModule a

%layout (input: s8[30,64,128]) -> s8[30,64,128] {
  %input = s8[30,64,128]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %copy = s8[30,64,128]{2,1,0:T(8,128)(4,1)} copy(%input)
}

%fused (p0: s8[30,64,128], p1: s32[]) -> bf16[1,64,128] {
  %p0 = s8[30,64,128]{2,1,0:T(32,128)(4,1)} parameter(0)
  %other = s8[30,64,128]{2,1,0:T(8,128)(4,1)} fusion(%p0), kind=kLoop, \
calls=%layout
  %p1 = s32[] parameter(1)
  %one = s8[1,64,128]{2,1,0} dynamic-slice(%other, %p1, %p1, %p1)
  ROOT %wide = bf16[1,64,128]{2,1,0} convert(%one)
}

ENTRY %main (a: s8[30,64,128], i: s32[]) -> bf16[1,64,128] {
  %a = s8[30,64,128]{2,1,0:T(32,128)(4,1)} parameter(0)
  %i = s32[] parameter(1)
  ROOT %out = bf16[1,64,128]{2,1,0} fusion(%a, %i), kind=kLoop, calls=%fused
}
"""
  of_slice, result = 64 * 128, 2 * 64 * 128
  assert costs.count(hlo.parse(text)).bytes_accessed == of_slice + result


def test_a_slice_that_a_fusion_writes_counts_the_slice_only():
  """As a scan saves an array: the slice, and the array for what follows."""
  text = """HloModule a

%part (p: bf16[30,4,8], q: bf16[4,8], i: s32[]) -> (bf16[30,4,8], bf16[4,8]) {
  %p = bf16[30,4,8]{2,1,0} parameter(0)
  %q = bf16[4,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %twice = bf16[4,8]{1,0} add(%q, %q)
  %row = bf16[1,4,8]{2,1,0} bitcast(%twice)
  %put = bf16[30,4,8]{2,1,0} dynamic-update-slice(%p, %row, %i, %i, %i)
  ROOT %t = (bf16[30,4,8]{2,1,0}, bf16[4,8]{1,0}) tuple(%put, %twice)
}

ENTRY %main (q: bf16[4,8], i: s32[]) -> (bf16[30,4,8], bf16[4,8]) {
  %q = bf16[4,8]{1,0} parameter(0)
  %i = s32[]{:S(2)} parameter(1)
  %saved = bf16[30,4,8]{2,1,0} custom-call(), \
custom_call_target="AllocateBuffer"
  ROOT %f = (bf16[30,4,8]{2,1,0}, bf16[4,8]{1,0}) fusion(%saved, %q, %i), \
kind=kLoop, calls=%part
}
"""
  one = 4 * 8 * 2
  assert costs.count(hlo.parse(text)).bytes_accessed == one + 2 * one
  # The second one stays on the chip.
  near = text.replace("bf16[4,8]{1,0}) fusion", "bf16[4,8]{1,0:S(1)}) fusion")
  assert costs.count(hlo.parse(near)).bytes_accessed == one + one
  alone = text.replace(
    "(bf16[30,4,8]{2,1,0}, bf16[4,8]{1,0}) fusion", "bf16[30,4,8]{2,1,0} fusion"
  ).replace(
    "ROOT %t = (bf16[30,4,8]{2,1,0}, bf16[4,8]{1,0}) tuple(%put, %twice)",
    "ROOT %t = bf16[30,4,8]{2,1,0} bitcast(%put)",
  )
  assert costs.count(hlo.parse(alone)).bytes_accessed == one + one


def test_on_chip_memory_is_no_hbm_traffic():
  on_chip, main = hlo.arrays("(bf16[8,8]{1,0:T(8,128)S(1)}, f32[3]{0})")
  assert not on_chip.in_hbm and main.in_hbm
  assert (on_chip.bytes, main.bytes) == (128, 12)


def test_flops_agree_with_xla_and_count_loop_iterations():
  """XLA counts a loop once; without one it agrees with us."""

  def layers(x, w):
    y = jax.lax.conv_general_dilated(
      x, w, (2,), [(1, 1)], dimension_numbers=("NTC", "TIO", "NTC")
    )
    return jnp.einsum("btc,bsc->bts", y, y)

  shapes = jnp.ones((2, 9, 4)), jnp.ones((3, 4, 5))
  once = jax.jit(layers).lower(*shapes).compile()
  found = costs.count(hlo.parse(once.as_text()))
  # Two of five places meet padding at one of three weights.
  assert found.flops == 2 * 2 * 4 * 5 * (15 - 2) + 2 * 2 * 5 * 5 * 5
  assert found.bytes_accessed > 0 and not found.collective_bytes

  def product(c, _):
    return jnp.tanh(c @ c), None

  loop = jax.jit(lambda x: jax.lax.scan(product, x, None, 7))
  text = loop.lower(jnp.ones((16, 16))).compile().as_text()
  assert costs.count(hlo.parse(text)).flops == 7 * 2 * 16**3


def test_collectives_of_a_mesh_are_counted():
  mesh = meshes.make(jax.devices(), data=2, context=4)
  x = jax.ShapeDtypeStruct(
    (8, 16), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P("context"))
  )
  whole = jax.NamedSharding(mesh, jax.P())
  program = jax.jit(lambda x: x * 2, out_shardings=whole)
  found = costs.count(hlo.parse(program.lower(x).compile().as_text()))
  (((kind, group), size),) = found.collective_bytes.items()
  assert kind == "all-gather" and size == 8 * 16 * 4 * 3 / 4
  assert collectives.mesh_axes(group, dict(mesh.shape)) == ("context",)


@pytest.mark.parametrize(
  ("text", "groups"),
  [
    ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
    ("source_target_pairs={{0,1},{1,0},{2,3},{3,2}}", [[0, 1], [2, 3]]),
  ],
)
def test_replica_groups_are_parsed(text, groups):
  assert collectives.replica_groups(f"channel_id=1, {text}, x=1") == groups


def test_unknown_instructions_are_reported():
  with pytest.raises(ValueError, match="with an ENTRY"):
    hlo.parse("nothing")
  with pytest.raises(ValueError, match="kernel mystery are unknown"):
    costs.count(hlo.parse(TPU.replace("splash_mha_fwd_segmented.1", "mystery")))
  with pytest.raises(ValueError, match="no constant number of trips"):
    costs.count(hlo.parse(TPU.replace("constant(30)", "parameter(1)")))
