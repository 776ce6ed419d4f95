"""What stays the same throughout a study: its rows, its programs, its data."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lottery_jax import arms, engine, masks, scores, training
from lottery_jax.chains import Chain, Plan, prune_chain
from lottery_jax.engine import Programs, Rows, Timeline
from lottery_jax.replicas import Execution, padded, parallel, place, shared
from lottery_jax.types import Array, Key, Mask, Network, Params, PyTree, Task


class Setting(NamedTuple):
    """What stays the same throughout a study."""

    task: Task
    data: PyTree
    plan: Plan
    rows: Rows
    programs: Programs
    begin: Callable[..., Any]
    cut: Callable[..., Any]
    count: Callable[..., Any]
    first: Network
    stream: PyTree
    order: Array
    noise: Key
    execution: Execution
    prunable: PyTree
    template: Params
    ticket_rows: np.ndarray  # [Q] row of each (chain, replica), padded
    source: np.ndarray  # [P] index into Q of each row
    pairs: int  # chains * replicas, the real part of Q
    shape: tuple[int, int, int]  # chains, replicas, arms
    validates: bool


def set_up(
    task: Task,
    tx: optax.GradientTransformation,
    plan: Plan,
    ids: tuple[int, ...],
    execution: Execution,
    start: Network | None,
) -> Setting:
    """Lays out rows and builds the programs; nothing is trained yet."""
    if "small_dense" in plan.arms and task.narrow is None:
        raise ValueError("arms: 'small_dense' needs a task that says how to narrow it")
    shape = (len(plan.chains), len(ids), len(plan.arms))
    rows = engine.make_rows(shape[0], plan.arms, ids, plan.seed, execution)
    pairs = shape[0] * shape[1]
    position = np.minimum(np.arange(padded(pairs, execution)), pairs - 1)
    ticket_rows = position * shape[2] + plan.arms.index("ticket")
    template = jax.eval_shape(task.init, jax.random.key(0))[0]
    prunable = task.prunable(template) if task.prunable else masks.prunable(template)
    masks.cuttable(template, prunable, task.exclude)  # or it raises
    compiled = _compiled(task, tx, plan, prunable, execution)
    programs = compiled["programs"]
    fresh = jnp.asarray(rows.fresh)
    put = partial(place, execution=execution)
    noise = put(jnp.where(fresh, rows.keys.fresh_noise, rows.keys.noise))
    init_keys = put(jnp.where(fresh, rows.keys.fresh_init, rows.keys.init))
    first, stream = programs.init(init_keys)
    if start is not None:
        given = put(_spread(start, first, rows, shape[1]))
        first = jax.tree.map(lambda g, f: where_rows(fresh, f, g), given, first)
        first = put(first)
    return Setting(
        task=task,
        data=jax.device_put(task.data, shared(execution)),
        plan=plan,
        rows=rows,
        **compiled,
        first=first,
        stream=stream,
        order=programs.order(noise),
        noise=noise,
        execution=execution,
        prunable=prunable,
        template=template,
        ticket_rows=ticket_rows,
        source=rows.chain * shape[1] + rows.replica,
        pairs=pairs,
        shape=shape,
        validates=task.validates,
    )


def with_chunk(
    setting: Setting, tx: optax.GradientTransformation, execution: Execution
) -> Setting:
    """The same with other programs: the devices stay, so arrays lie where they lay.

    Args:
      setting: as it was.
      tx: the optimizer.
      execution: on the same devices, in the same groups.
    """
    compiled = _compiled(setting.task, tx, setting.plan, setting.prunable, execution)
    return setting._replace(**compiled, execution=execution)


def _compiled(
    task: Task,
    tx: optax.GradientTransformation,
    plan: Plan,
    prunable: PyTree,
    execution: Execution,
) -> dict[str, Any]:
    """The programs of a setting: `programs`, `begin`, `cut` and `count`."""
    finetunes = any(chain.retrain == "finetune" for chain in plan.chains)
    stop = plan.steps + (plan.steps - min(plan.rewind_steps) if finetunes else 0)
    programs = engine.compile_programs(
        task,
        tx,
        execution,
        epochs=training.epochs_of(task, stop),
        capacity=min(plan.validate_every, plan.steps),
        keep_optimizer=plan.optimizer == "rewind",
    )
    functions = task.functions

    def begin(
        arm: Array, keys: arms.ReplicaKeys, mask: Mask, chain: Network, own: Network
    ) -> tuple[Network, Mask]:
        return arms.begin(
            arm,
            keys,
            mask,
            chain,
            own,
            scope=plan.random_scope,
            prunable=prunable,
            exclude=task.exclude,
        )

    def cut(
        data: PyTree,
        level: Array,
        chain: Array,
        key: Key,
        noise: Key,
        order: Array,
        stream: PyTree,
        initial: Network,
        rewind: Network,
        final: Network,
        dense: Network | tuple[()],
        mask: Mask,
        keep: Array,
    ) -> Mask:
        bound = functions._replace(data=data)
        batches = _score_batches(bound, noise, order)

        def loss(params: Params, model_state: PyTree, batch: PyTree, key: Key) -> Array:
            return task.loss(params, model_state, stream, batch, key)[0]

        def by(one: Chain) -> Mask:
            one_shot = one.schedule == "one_shot"
            source = dense if one_shot else final
            assert isinstance(source, Network)
            inputs = scores.Inputs(
                trained=source.params,
                mask=masks.ones_like(mask) if one_shot else mask,
                initial=initial.params,
                rewind=rewind.params,
                model_state=source.model_state,
                loss=loss,
                batches=batches,
            )
            score_key = jax.random.fold_in(key, level)
            return prune_chain(
                one, score_key, inputs, keep, prunable=prunable, exclude=task.exclude
            )

        return jax.lax.switch(chain, [partial(by, one) for one in plan.chains])

    many = partial(parallel, execution=execution)
    return {
        "programs": programs,
        "begin": many(begin, (0, 0, 0, 0, 0)),
        "cut": many(cut, (None, None, *[0] * 11)),
        "count": many(partial(_layer_counts, prunable=prunable), (0,)),
    }


_SCORE_BATCHES = 8


def _score_batches(task: Task, noise: Key, order: Array) -> PyTree:
    """The first batches of a row's data order, for scores that need gradients."""
    keys = training.noise_keys(noise)
    number = min(_SCORE_BATCHES, task.steps_per_epoch)
    return jax.lax.map(
        lambda i: task.batch(task.data, order[0, i], keys.batch, i), jnp.arange(number)
    )


def _layer_counts(mask: Mask, prunable: PyTree) -> Array:
    flags = masks.resolve(mask, prunable)
    leaves = jax.tree.leaves(mask)
    return jnp.stack(
        [jnp.sum(m, dtype=jnp.int32) for m, take in zip(leaves, flags) if take]
    )


def _spread(start: Network, first: Network, rows: Rows, number: int) -> Network:
    """Given weights, one copy per row; validates their shapes."""
    if not masks.same_structure(start, first):
        raise ValueError(
            f"start: its leaves {masks.paths(start)} are not those of the task, "
            f"{masks.paths(first)}"
        )

    def spread(path: tuple, given: Array, row: Array) -> Array:
        given = jnp.asarray(given)
        if given.shape == row.shape[1:]:
            return jnp.broadcast_to(given, row.shape)
        if given.shape == (number, *row.shape[1:]):
            return given[rows.replica]
        raise ValueError(
            f"start: leaf {masks.leaf_path(path)!r} has shape {given.shape}; it must be "
            f"{row.shape[1:]}, or {(number, *row.shape[1:])} with one entry per replica"
        )

    return jax.tree_util.tree_map_with_path(spread, start, first)


def where_rows(condition: Array, yes: Array, no: Array) -> Array:
    """`jnp.where` by row: condition `[P]`, the others `[P, ...]`."""
    return jnp.where(condition.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)


def timeline_of(setting: Setting, level: int) -> Timeline:
    """Who trains when at a level: from the rewind step on, except at level 0."""
    plan, rows = setting.plan, setting.rows
    rewind = rewind_steps(setting)
    join, offset = np.zeros_like(rewind), np.zeros_like(rewind)
    if level > 0:
        join = rewind.copy()
        join[rows.is_arm("small_dense")] = 0
        finetune = np.array([chain.retrain == "finetune" for chain in plan.chains])
        goes_on = finetune[rows.chain] & ~rows.fresh
        offset[goes_on] = plan.steps - rewind[goes_on]
    marks = tuple(sorted(set(plan.rewind_steps)))
    return Timeline(join, offset, plan.steps, plan.validate_every, marks)


def rewind_steps(setting: Setting) -> np.ndarray:
    """The rewind step of each row's chain, int32 `[P]`."""
    return np.array(setting.plan.rewind_steps, np.int32)[setting.rows.chain]
