"""Which module of PyTorch is which layer here: conventions as data, and one's own."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from lottery_jax import errors, models, units

_EPSILON = 1e-5  # PyTorch's BatchNorm's, which nobody here changes


def _lenet(model: models.MLP) -> dict[str, str]:
    hidden = {f"dense_{i}": f"fc_layers.{i}" for i in range(len(model.widths))}
    return hidden | {"head": "fc"}


def _vgg(model: models.VGG) -> dict[str, str]:
    found: dict[str, str] = {}
    i = 0
    for group, layers in enumerate(model.layers):
        for _ in range(layers):
            place = i + group  # every group but the first begins with a pooling layer
            found |= {f"conv_{i}": f"layers.{place}.conv"}
            found |= {f"norm_{i}": f"layers.{place}.bn"}
            i += 1
    return found | {"head": "fc"}


def _blocks(
    model: models.ResNet, place: Callable[[int, int], str], shortcut: str
) -> dict[str, str]:
    """The blocks of a ResNet, of which `place(stage, block)` is the module."""
    found: dict[str, str] = {}
    for stage, blocks in enumerate(model.layers):
        for i in range(blocks):
            ours, theirs = f"stage_{stage}_block_{i}", place(stage, i)
            for j in range(3 if model.bottleneck else 2):
                found |= {f"{ours}/conv_{j}": f"{theirs}.conv{j + 1}"}
                found |= {f"{ours}/norm_{j}": f"{theirs}.bn{j + 1}"}
            found |= {f"{ours}/shortcut": f"{theirs}.{shortcut}.0"}
            found |= {f"{ours}/shortcut_norm": f"{theirs}.{shortcut}.1"}
    return found


def _cifar_resnet(model: models.ResNet) -> dict[str, str]:
    if model.imagenet:
        names = _imagenet_resnet(model)
        return {ours: f"model.{theirs}" for ours, theirs in names.items()}
    if model.bottleneck:
        raise errors.wrong(
            "model.bottleneck", True, "False: open_lth has none for CIFAR"
        )
    before = [sum(model.layers[:stage]) for stage in range(len(model.layers))]
    blocks = _blocks(model, lambda s, i: f"blocks.{before[s] + i}", "shortcut")
    return {"stem": "conv", "stem_norm": "bn", **blocks, "head": "fc"}


def _imagenet_resnet(model: models.ResNet) -> dict[str, str]:
    if not model.imagenet:
        raise errors.wrong("model.imagenet", False, "True: torchvision has these alone")
    blocks = _blocks(model, lambda s, i: f"layer{s + 1}.{i}", "downsample")
    return {"stem": "conv1", "stem_norm": "bn1", **blocks, "head": "fc"}


CONVENTIONS: dict[str, dict[type, Callable[..., dict[str, str]]]] = {
    "open_lth": {models.MLP: _lenet, models.VGG: _vgg, models.ResNet: _cifar_resnet},
    "torchvision": {models.ResNet: _imagenet_resnet},
}
"""Who names which networks how: open_lth's `mnist_lenet_*`, `cifar_vgg_*`,
`cifar_resnet_*` and `imagenet_resnet_*`, torchvision's ResNets."""


def modules(model: Any, names: str | Mapping[str, str] = "open_lth") -> dict[str, str]:
    """The PyTorch module of every layer of a model.

    Args:
      model: a model of `lottery_jax.models`, or any other with a method `unit_plan()`.
      names: one of `CONVENTIONS`, or the modules themselves, by layer.

    Returns:
      For each layer and norm of the model, in their order, the name of its module:
      `{"dense_0": "fc_layers.0", ..., "head": "fc"}`.

    Raises:
      ValueError: no such convention, or one without this network; layers without a module,
        modules without a layer, or one module for two.
    """
    layers = layers_of(model)
    if isinstance(names, str):
        errors.one_of("names", names, CONVENTIONS)
        known = CONVENTIONS[names]
        if type(model) not in known:
            must = f"the modules of {layers} by layer: it has no {type(model).__name__}"
            raise errors.wrong("names", repr(names), must)
        if model.choices.head != "linear":
            must = f"'linear', as in {names}; name modules by layer"
            raise errors.wrong("model.choices.head", repr(model.choices.head), must)
        found = known[type(model)](model)
        return {layer: found[layer] for layer in layers}
    errors.is_a("names", names, Mapping, "a convention, or modules by layer")
    lacks = [layer for layer in layers if layer not in names]
    extra = [layer for layer in names if layer not in layers]
    if lacks or extra:
        raise ValueError(
            f"names lacks {lacks or 'nothing'} and has {extra or 'nothing'} too much; it "
            f"must name the module of every layer of the model, {layers}"
        )
    errors.some_different("the modules of names", tuple(names.values()))
    return {layer: names[layer] for layer in layers}


def sequential(model: Any, weights: Mapping[str, Any]) -> dict[str, str]:
    """The modules of an `nn.Sequential`: one number after another, one layer after another.

    Its ReLU, pooling and flattening have no tensors, so the layers that do must be those
    of the model, each followed by its norm if it has one. That its activations and pooling
    are the model's cannot be seen in a state dict.

    Args:
      model: one whose layers follow one another: `MLP`, `ConvNet`, `VGG`.
      weights: the state dict, names such as `0.weight` or `features.0.weight`, of one
        `nn.Sequential` alone.

    Returns:
      What `names` may be elsewhere here.

    Raises:
      ValueError: a model with branches, names of another form or of several
        `nn.Sequential`, or another number of layers.
    """
    layers, plan = layers_of(model), model.unit_plan()
    if list(plan) != list(units.in_sequence([(p.name, p.norm) for p in plan[:-1]])):
        must = "one whose layers follow one another"
        raise errors.wrong("model", type(model).__name__, must)
    places: dict[int, str] = {}
    prefixes = set()
    for name in weights:
        match = re.fullmatch(r"((?:.*\.)?)(\d+)\.[a-z_]+", name)
        if match is None:
            raise errors.wrong("a name of weights", repr(name), "of an nn.Sequential")
        prefixes.add(match[1])
        places[int(match[2])] = match[1] + match[2]
    if len(prefixes) > 1:
        must = "the tensors of one nn.Sequential; name modules by layer"
        raise errors.wrong("weights", f"those of {sorted(prefixes)}", must)
    theirs = [places[i] for i in sorted(places)]
    if len(theirs) != len(layers):
        must = f"as many as the model has, {layers}"
        raise errors.wrong("the modules of weights", theirs, must)
    return dict(zip(layers, theirs))


def layers_of(model: Any) -> list[str]:
    """The layers of a model, each followed by its norm."""
    if not hasattr(model, "unit_plan"):
        must = "one with a method unit_plan(), as every model of lottery_jax has"
        raise errors.wrong("model", type(model).__name__, must)
    plan = model.unit_plan()
    return [name for p in plan for name in (p.name, p.norm) if name is not None]


def check_same_function(model: Any, shape: tuple[int, ...], names: Any) -> None:
    """Refuses what a network of a convention computes otherwise from the same weights."""
    if not isinstance(names, str):
        return
    normalises = any(layer.norm is not None for layer in model.unit_plan())
    if normalises and model.choices.epsilon != _EPSILON:
        must = f"{_EPSILON}, as in {names}"
        raise errors.wrong("model.choices.epsilon", model.choices.epsilon, must)
    if len(shape) != 3:
        return  # dense networks
    if isinstance(model, models.VGG):
        halved = len(model.layers) - 1
        if {side >> halved for side in shape[:2]} != {2}:
            must = (
                f"one of 2 x 2 pixels after {halved} poolings: open_lth averages 2 x 2"
            )
            raise errors.wrong("shape", shape, must)
    if isinstance(model, models.ResNet) and not model.imagenet and shape[0] != shape[1]:
        raise errors.wrong("shape", shape, "square: open_lth averages square images")
