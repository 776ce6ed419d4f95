"""Compiling for devices that are not there, and reading what was compiled."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lottery_jax as lj
from benchmarks import floor, kernels, targets, traffic
from benchmarks.rows import Sizes
from benchmarks.sides_jax import make_task, make_tx
from lottery_jax import connectivity, training
from lottery_jax.execution import Execution, Where
from lottery_jax.training import programs

# --- reading a program ----------------------------------------------------------------

HLO = """\
HloModule jit_run, is_scheduled=true

%fused_slice (param_0: f32[9,100], param_1: s32[]) -> f32[1,100] {
  %param_0 = f32[9,100]{1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,100]{1,0} dynamic-slice(%param_0, %param_1, %zero)
}

%fused_put (param_0.1: f32[9,100], param_1.1: f32[1,100], param_2.1: s32[]) -> f32[9,100] {
  %param_0.1 = f32[9,100]{1,0} parameter(0)
  %param_1.1 = f32[1,100]{1,0} parameter(1)
  %param_2.1 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %put = f32[9,100]{1,0} dynamic-update-slice(%param_0.1, %param_1.1, %param_2.1, %zero.1)
}

%fused_add (param_0.2: f32[9,100], param_1.2: bf16[9,100]) -> (f32[9,100], pred[9,100]) {
  %param_0.2 = f32[9,100]{1,0} parameter(0)
  %param_1.2 = bf16[9,100]{1,0} parameter(1)
  %wide = f32[9,100]{1,0} convert(%param_1.2)
  %add = f32[9,100]{1,0} add(%param_0.2, %wide)
  %is = pred[9,100]{1,0} compare(%add, %wide), direction=GT
  ROOT %both = (f32[9,100]{1,0}, pred[9,100]{1,0}) tuple(%add, %is)
}

%over_replicas (carry: (s32[], f32[9,100])) -> (s32[], f32[9,100]) {
  %carry = (s32[], f32[9,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %x = f32[9,100]{1,0} get-tuple-element(%carry), index=1
  %fusion-start = ((f32[9,100]{1,0}, s32[]), f32[1,100]{1,0}, u32[]) fusion-start(%x, %i), kind=kLoop, calls=%fused_slice, metadata={deduplicated_name="loop_slice_fusion"}
  %fusion-done = f32[1,100]{1,0} fusion-done(%fusion-start)
  %loop_put_fusion = f32[9,100]{1,0} fusion(%x, %fusion-done, %i), kind=kLoop, calls=%fused_put
  ROOT %next = (s32[], f32[9,100]{1,0}) tuple(%i, %loop_put_fusion)
}

%steps (carry.1: (s32[], f32[9,100], bf16[9,100])) -> (s32[], f32[9,100], bf16[9,100]) {
  %carry.1 = (s32[], f32[9,100]{1,0}, /*index=2*/bf16[9,100]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%carry.1), index=0
  %x.1 = f32[9,100]{1,0} get-tuple-element(%carry.1), index=1
  %y.1 = bf16[9,100]{1,0} get-tuple-element(%carry.1), index=2
  %loop_add_fusion.1 = (f32[9,100]{1,0}, pred[9,100]{1,0}) fusion(%x.1, %y.1), kind=kLoop, calls=%fused_add
  %sum = f32[9,100]{1,0} get-tuple-element(%loop_add_fusion.1), index=0
  %cudnn-conv = (f32[9,100]{1,0}, u8[4096]{0}) custom-call(%sum, %y.1), custom_call_target="__cudnn$convForward"
  %made = f32[9,100]{1,0} get-tuple-element(%cudnn-conv), index=0
  %copy.2 = f32[9,100]{0,1} copy(%made)
  %begin = (s32[], f32[9,100]{1,0}) tuple(%i.1, %copy.2)
  %while.2 = (s32[], f32[9,100]{1,0}) while(%begin), condition=%less, body=%over_replicas, backend_config={"known_trip_count":{"n":"9"}}
  %end = f32[9,100]{1,0} get-tuple-element(%while.2), index=1
  ROOT %tuple.3 = (s32[], f32[9,100]{1,0}, bf16[9,100]{1,0}) tuple(%i.1, %end, %y.1)
}

%much (p.1: f32[9,100]) -> f32[9,100] {
  %p.1 = f32[9,100]{1,0} parameter(0)
  ROOT %copy.3 = f32[9,100]{1,0} copy(%p.1)
}

%little (p.2: f32[9,100]) -> f32[9,100] {
  ROOT %p.2 = f32[9,100]{1,0} parameter(0)
}

ENTRY %main (a: f32[9,100], b: bf16[9,100], flag: s32[]) -> f32[9,100] {
  %a = f32[9,100]{1,0} parameter(0)
  %b = bf16[9,100]{1,0} parameter(1)
  %flag = s32[] parameter(2)
  %all-reduce-start = f32[9,100]{1,0} all-reduce-start(%a), to_apply=%sum_of_two
  %all-reduce-done = f32[9,100]{1,0} all-reduce-done(%all-reduce-start)
  %first = (s32[], f32[9,100]{1,0}, bf16[9,100]{1,0}) tuple(%flag, %all-reduce-done, %b)
  %while.1 = (s32[], f32[9,100]{1,0}, bf16[9,100]{1,0}) while(%first), condition=%less, body=%steps
  %last = f32[9,100]{1,0} get-tuple-element(%while.1), index=1
  ROOT %which = f32[9,100]{1,0} conditional(%flag, %last, %last), branch_computations={%little, %much}
}
"""  # noqa: E501

PTX = """\
.visible .entry loop_add_fusion_1(
	.param .u64 .ptr .align 256 loop_add_fusion_1_param_0
)
{
	ld.param::entry.b64 	%rd1, [loop_add_fusion_1_param_0];
	ld.global.nc.v4.b32 	{%r1, %r2, %r3, %r4}, [%rd1];
	@%p1 bra 	$L__BB0_2;
	st.global.v2.b32 	[%rd1], {%r1, %r2};
	ret;
}

.visible .entry loop_slice_fusion(
	.param .u64 .ptr .align 256 loop_slice_fusion_param_0
)
{
	ld.global.nc.b32 	%r1, [%rd1];
	st.global.v4.b32 	[%rd1], {%r1, %r2, %r3, %r4};
	ret;
}

.visible .entry loop_put_fusion(
	.param .u64 .ptr .align 256 loop_put_fusion_param_0
)
{
	@%p1 bra 	$L__BB2_2;
	@%p2 bra 	$L__BB2_3;
	bra.uni 	$L__BB2_3;
	ld.global.v4.b32 	{%r1, %r2, %r3, %r4}, [%rd1];
	st.global.v4.b32 	[%rd1], {%r1, %r2, %r3, %r4};
	ret;
}
"""

ARRAY = (
    9 * 100 * 4
)  # bytes of f32[9,100]; a row is a ninth, bf16 the half, pred a quarter


@pytest.fixture
def program():
    return kernels.parse(HLO)


def test_the_size_of_a_shape_is_that_of_its_arrays():
    assert kernels.size("f32[9,100]{1,0}") == 3600
    assert kernels.size("(bf16[9,100]{1,0}, pred[3]{0}, s32[])") == 1800 + 3 + 4
    assert kernels.size("u8[7]{0}") == kernels.size("f8e4m3fn[7]{0}") == 7
    assert kernels.size("c64[2]{0:T(256)S(1)}") == 16
    assert kernels.size("f64[0,5]{1,0}") == kernels.size("token[]") == 0


def test_kernels_of_a_step_are_counted_as_often_as_they_run(program):
    found = {one.kind: one for one in kernels.of_step(program)}
    shown = {
        kind: (one.read, one.written, one.times, one.is_loop)
        for kind, one in found.items()
    }
    assert shown == {
        # Two results, read and written once.
        "loop_add_fusion": (3 * ARRAY // 2, 5 * ARRAY // 4, 1, True),
        # Without the scratch memory of the library.
        "__cudnn$convForward": (3 * ARRAY // 2, ARRAY, 1, False),
        "copy": (ARRAY, ARRAY, 1, False),
        # Of a slice as much as is looked at; it was started early.
        "loop_slice_fusion": (ARRAY // 9 + 4, ARRAY // 9, 9, True),
        # In place: what is not updated is not moved.
        "loop_put_fusion": (ARRAY // 9 + 4, ARRAY // 9, 9, True),
    }
    assert kernels.moved(list(found.values())) == (
        (11 * ARRAY // 4) + (5 * ARRAY // 2) + 2 * ARRAY + 2 * 9 * (2 * ARRAY // 9 + 4)
    )


def test_a_whole_program_has_its_steps_once_and_the_heavier_branch(program):
    step, whole = kernels.of_step(program), kernels.of_program(program)
    # Beside the step: what devices tell each other, and the copy of one branch.
    assert kernels.moved(whole) - kernels.moved(step) == 2 * ARRAY + 2 * ARRAY
    assert sum(one.times for one in whole) == sum(one.times for one in step) + 2


def test_a_program_without_steps_is_refused():
    text = HLO.replace("body=%steps", 'body=%steps, "known_trip_count":{"n":"3"}')
    with pytest.raises(ValueError, match="no loop over steps"):
        kernels.of_step(kernels.parse(text))


def test_convolutions_and_collectives_are_found(program):
    assert kernels.convolutions(program) == 1
    assert kernels.collectives(program) == {"all-reduce": 1}


def test_kernels_are_summed_by_kind_and_the_heaviest_come_first(program):
    found = kernels.by_kind(kernels.of_step(program))
    assert next(iter(found)) == "loop_add_fusion"
    assert found["loop_slice_fusion"] == (9, 9 * (ARRAY // 9 + 4), ARRAY)


def test_the_assembly_says_what_branches_and_what_moves_single_values():
    found = kernels.assemblies(PTX)
    assert found == {
        "loop_add_fusion_1": kernels.Assembly(5, 1, 16, 8),
        "loop_slice_fusion": kernels.Assembly(3, 0, 4, 16),
        "loop_put_fusion": kernels.Assembly(6, 3, 16, 16),
    }
    slow = {name for name, one in found.items() if one.is_slow}
    assert slow == {"loop_slice_fusion", "loop_put_fusion"}


def test_heavy_kernels_are_slow_by_their_own_assembly(program):
    step, code = kernels.of_step(program), kernels.assemblies(PTX)
    found = [one.kind for one, _ in kernels.slow(step, code)]
    assert sorted(found) == ["loop_put_fusion", "loop_slice_fusion"]
    share = 9 * (2 * ARRAY // 9 + 4) / kernels.moved(step)
    assert kernels.slow(step, code, share=1.01 * share) == []
    # An equal kernel that was compiled for another one.
    other = {"loop_put_fusion_7": code["loop_put_fusion"]}
    again = step[-1]._replace(symbol="loop_put_fusion_7")
    assert [one.name for one, _ in kernels.slow([*step, again], other)] == [
        "loop_put_fusion",
        "loop_put_fusion",
    ]


# --- the floor ------------------------------------------------------------------------


def resnet_20(batch, item):
    """Bytes by arithmetic: products, the first, norms, sums beside the main path."""
    products, norms, sums = [], 0, 0
    side, channels = 32, 16
    products.append((32 * 32 * 3 * item, 32 * 32 * 16 * item))
    norms += 32 * 32 * 16
    for stage in range(3):
        for block in range(3):
            before = side * side * channels
            if stage and not block:
                side, channels = side // 2, 2 * channels
            after = side * side * channels
            products += [(before * item, after * item), (after * item, after * item)]
            norms += 2 * after
            if stage and not block:  # a convolution on the way around, normalised
                products.append((before * item, after * item))
                norms += after
            else:
                sums += after
    products.append((64 * 4, 10 * 4))  # the output layer is float32
    total = sum(map(sum, products))
    return [batch * n for n in (total, sum(products[0]), norms * item, sums * item)]


@pytest.mark.parametrize("activations, item", [("float32", 4), ("bfloat16", 2)])
def test_the_floor_is_the_arithmetic_of_the_layers(activations, item):
    sizes = traffic.sizes_of("resnet-20", 8)._replace(examples=64, test=64, replicas=3)
    execution = Execution(1, 0, activations=activations)
    asked = targets.asked(sizes, execution)
    products, first, norms, sums = resnet_20(8, item)
    images = 8 * 32 * 32 * 3 * (1 + 4) + 8 * (4 + 4 + 4)  # labels, example weights
    weights = sum(x.size for x in jax.tree.leaves(asked.task.shapes[0]))
    # SGD with momentum has one more number for each weight.
    passes = 3 * products - first + 8 * norms + 2 * sums
    moved = passes + images + weights * (3 * 4 + 2 * 4 + 1)
    assert floor.floor("train", asked) == 3 * moved


def test_the_floor_of_a_dense_network_is_mostly_its_optimizer():
    sizes = traffic.sizes_of("lenet-300-100")._replace(examples=64, replicas=256)
    asked = targets.asked(sizes, Execution(1, 0))
    weights = 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10
    layers = [(784, 300), (300, 100), (100, 10)]
    products = 60 * 4 * sum(a + b for a, b in layers)
    passes = 3 * products - 60 * 4 * (784 + 300)
    adam = 2 * (8 * weights + 4)
    batch = 60 * 784 * (1 + 4) + 60 * (4 + 4 + 4)
    own = passes + batch + 13 * weights + adam
    assert floor.floor("train", asked) == 256 * own


# --- the library's own programs -------------------------------------------------------

TINY = Sizes(
    model="resnet-8", shape=(8, 8, 3), examples=48, held_out=0, test=20, batch=8,
    optimizer="sgd", augment=True, steps=5, replicas=3,
)  # fmt: skip


def shapes(tree):
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(np.shape(x), str(x.dtype)) for x in leaves]


@pytest.mark.slow
def test_programs_are_given_what_the_library_gives_them(monkeypatch):
    called = {}

    class Called(programs.Program):
        def __init__(self, build, made):
            self.build, self.made = build, made
            self.ahead = lambda *specs: None

        def __call__(self, *args):
            called[self.build.__name__] = shapes(args)
            # Traced, and not compiled: values do not matter here.
            found = jax.eval_shape(self.made, *args)
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)

    def build(builder, *parts):
        return Called(builder, builder(*parts))

    monkeypatch.setattr(programs, "_build", build)
    execution = Execution(1, 0)
    task, where = make_task(TINY), Where(execution)
    tx, keys = make_tx(TINY), lj.keys.of_replicas(0, range(3))
    runs = training.fresh(task, tx, keys.init, keys.noise, where=where)
    done = training.train(task, tx, runs, 5, every=5, where=where)
    network = done.state.network
    training.evaluate(task, network, "test", where=where)
    asked = targets.asked(TINY, execution)
    measure = asked.measure._replace(alphas=3)
    networks = jax.tree.map(lambda x: np.concatenate([x, x[:1]]), network)
    connectivity.paths(task, networks, [(0, 1)], measure, where=where)
    given = {}

    class Lowered:
        def __init__(self, name, made):
            self.name = name

        def lower(self, *specs):
            given[self.name] = shapes(specs)

    for module, name in (
        (targets.segment, "train_rows"),
        (targets.measured, "tested"),
        (targets.points, "_points"),
    ):
        made = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *parts, n=name, m=made: Lowered(n, m(*parts))
        )
    for lower in targets.PROGRAMS.values():
        lower(asked)
    assert given == {name: called[name] for name in ("train_rows", "tested", "_points")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, splits",
    [("train", (50,)), ("evaluate", (30,)), ("interpolate", (50, 30))],
)
def test_replicas_that_are_vmapped_share_the_data(name, splits):
    """A branch by replica, say, would give each replica a copy of all examples."""
    sizes = TINY._replace(examples=50, test=30)
    lowered = targets.PROGRAMS[name](targets.asked(sizes, Execution(1, 0)))
    text = lowered.as_text()
    for examples in splits:
        assert f"tensor<{examples}x8x8x3xui8>" in text
        assert f"tensor<3x{examples}x8x8x3xui8>" not in text


def test_replicas_become_as_many_as_the_devices_divide():
    assert targets.asked(TINY, Execution(2, 0)).sizes.replicas == 4


# --- devices that are not there -------------------------------------------------------


def test_what_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    targets.devices.cache_clear()
    for name, wheel in (("h100", "jax\\[cuda13\\]"), ("tpu-v5e", "libtpu")):
        with pytest.raises(
            ModuleNotFoundError, match=f"{wheel}.*lottery-jax\\[targets"
        ):
            targets.devices(name)
        with pytest.raises(SystemExit):
            traffic.main(["--target", name])
        assert "pip install 'lottery-jax[targets]'" in capsys.readouterr().err


def test_a_target_that_is_none_is_named():
    with pytest.raises(ValueError, match="target='b200'; it must be one of h100, tpu"):
        targets.devices("b200")
    with pytest.raises(ValueError, match="devices=3; for target='tpu-v5e' it must be"):
        targets.devices("tpu-v5e", 3)
    with pytest.raises(ValueError, match="must be one of"):
        traffic.sizes_of("lenet")


@pytest.fixture
def compile_for():
    """Compiles a training segment; skips where a target's wheels are not installed."""

    def compile_for(target, number=1, settings=(), **sizes):
        if message := targets.missing(target):
            pytest.skip(message)
        own = traffic.sizes_of("resnet-20", 8)._replace(examples=256, steps=4)
        execution = targets.execution(target, number, **dict(settings))
        asked = targets.asked(own._replace(**sizes), execution)
        return traffic.measure("train", target, asked)

    return compile_for


@pytest.mark.parametrize(
    ("activations", "most"), [("float32", 27.5e9), ("bfloat16", 15e9)]
)
def test_nine_replicas_by_tiles_on_an_h100(compile_for, activations, most):
    settings = {"activations": activations}
    found = compile_for("h100", settings=settings, replicas=9, batch=128)
    assert found.kernels > 100
    assert found.convolutions == 0
    assert found.floor < found.bytes < most
    # Kernels that branch, or load or store single values.
    assert found.slow <= 0.02
    assert found.collectives == {}


def test_a_plain_convolution_stays_one_on_an_h100(compile_for):
    found = compile_for("h100", settings={"convolution": "loop"}, replicas=1)
    assert found.convolutions >= 3 * 21 - 1


def test_a_training_segment_compiles_for_a_tpu(compile_for):
    found = compile_for("tpu-v5e", replicas=2)
    assert found.bytes > found.floor
    assert found.convolutions >= 3 * 21 - 1
    assert found.collectives == {}


def test_replicas_on_four_chips_do_not_talk_to_each_other(compile_for):
    found = compile_for("tpu-v5e", number=4, replicas=8)
    assert found.settings["devices"] == 4
    assert found.collectives == {}


def test_the_command_prints_a_table_and_writes_it(tmp_path, capsys):
    if message := targets.missing("h100"):
        pytest.skip(message)
    out = tmp_path / "found.json"
    words = "--model lenet-300-100 --replicas 1 2 --convolution grouped loop"
    assert traffic.main([*words.split(), "--out", str(out)]) == 0
    stored = json.loads(out.read_text())
    assert [one["replicas"] for one in stored["programs"]] == [1, 2, 2]
    assert "| train | lenet-300-100 | h100 | 2 | loop |" in capsys.readouterr().out
