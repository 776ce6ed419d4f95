"""What an optimizer is called in messages: optax's transformations have no names."""

import contextlib
import inspect
from typing import Any

import optax

_REASONS = {
    "scale_by_param_block_rms": "scale_by_param_block_rms takes a mean over all weights "
    "of a leaf, pruned ones too; adafactor: multiply_by_parameter_scale=False",
    "clip_by_block_rms": "clip_by_block_rms takes a mean over all entries of a leaf, "
    "pruned ones too; adafactor: clipping_threshold=None",
    "scale_by_factored_rms": "its second moments are means of rows and columns; "
    "adafactor: factored=False",
    "scale_by_sm3": "sm3 keeps maxima of rows and columns, pruned weights among them; "
    "optax.adagrad keeps them for each weight",
    "scale_by_muon": "muon orthogonalises whole matrices, pruned entries with them",
    "centralize": "centralize subtracts means of rows, pruned entries among them",
    "adaptive_grad_clip": "adaptive_grad_clip goes by norms of units, of which a vector "
    "of survivors has none; optax.clip_by_global_norm sees the survivors alone",
    "lookahead": "The params of optax.lookahead are two networks. Mask the optimizer "
    "inside, and start from masked weights: optax.lookahead(masked(optimizer, mask), "
    "sync_period, slow_step_size)",
}
"""What is known of those that are refused; that they are is found by trying."""


def reasons(tx: optax.GradientTransformation) -> str:
    """Sentences on what of an optimizer is wrong under a mask, to go on with."""
    known = [_REASONS[name] for name in _parts(tx) if name in _REASONS]
    return "".join(f". {sentence}" for sentence in known)


def name_of(tx: optax.GradientTransformation) -> str:
    """What an optimizer is made of, by the names of the functions that made it."""
    first, *rest = _parts(tx) or [type(tx).__name__]
    return f"{first}({', '.join(rest)})" if rest else first


def _parts(tx: optax.GradientTransformation) -> list[str]:
    """The names of the transformations within one, from outside to inside."""
    found: list[str] = []
    seen: set[int] = set()

    def walk(thing: Any) -> None:
        if id(thing) in seen:
            return
        seen.add(id(thing))
        if isinstance(thing, tuple | list):
            for x in thing:
                walk(x)
        elif isinstance(thing, dict):
            walk(list(thing.values()))
        elif inspect.ismethod(thing):
            walk(thing.__self__)
        elif isinstance(thing, optax.MultiSteps):
            found.append("MultiSteps")
            walk(thing.inner_opt)
        elif inspect.isfunction(thing):
            outer, _, inside = thing.__qualname__.partition(".<locals>")
            updates = inside and "update" in thing.__name__
            if updates and outer not in (*_QUIET, *found):
                found.append(outer)
            for cell in thing.__closure__ or ():
                with contextlib.suppress(ValueError):  # nothing in it yet
                    walk(cell.cell_contents)

    walk(tx.update)
    return found


_QUIET = ("with_extra_args_support", "stateless", "identity")
