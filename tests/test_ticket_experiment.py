"""A ticket that is handed over: its file says enough to go on, or what is missing."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
import toys

import lottery_jax as lj
from experiments import identity, imp, provenance, recipes, rewinding, ticket
from experiments.kinds import images
from experiments.recipes import Recipe
from experiments.rewinding import subnetworks
from experiments.ticket import inspecting, verifying
from lottery_jax import masks, records, tickets

pytestmark = pytest.mark.usefixtures("compiled_quickly")

xr = pytest.importorskip("xarray")

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = "mnist1d --model mlp-8 --subset 200 --steps 8it --validate-every 4 --replicas 3"
"""As many networks at a time as verify trains then, so that programs are shared."""
STEPS, LEVEL = 8, 2


def command(main, *arguments):
    """Runs a command in this process: (exit status, stdout, stderr)."""
    words = [str(a).split() if isinstance(a, str) else [str(a)] for a in arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(sum(words, []))
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue(), err.getvalue()


def refused(*arguments):
    """What the command says in the one line with which it ends."""
    status, _, err = command(ticket.main, *arguments)
    assert status == 2
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """Compiled programs are shared with the other process, and only with it."""
    from jax.experimental.compilation_cache import compilation_cache as cache

    folder = str(tmp_path_factory.mktemp("xla"))
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (folder, 0.0)):
        jax.config.update(name, value)
    cache.reset_cache()
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)
    cache.reset_cache()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a small study from the initialisation."""
    folder = tmp_path_factory.mktemp("study") / "run"
    status, _, err = command(imp.main, TINY, "--levels", str(LEVEL), "--out", folder)
    assert status == 0, err
    return folder


def stored(run, level=LEVEL, replica=1):
    return lj.imp.ticket_path(run / "replicas-000-002", "imp", level, replica)


@pytest.fixture
def file(run, tmp_path):
    """A ticket alone, in a folder of nothing else."""
    return pathlib.Path(shutil.copy(stored(run), tmp_path / "ticket.safetensors"))


def changed(file, name="changed.safetensors", weights="stored", **fields):
    """The same ticket with other fields, or other metadata where these are a function."""
    found = tickets.load(file)
    fields = {k: f(getattr(found, k)) if callable(f) else f for k, f in fields.items()}
    tickets.save(file.parent / name, found._replace(**fields), weights=weights)
    return file.parent / name


def without(*names):
    return lambda meta: {k: v for k, v in meta.items() if k not in names}


def having(**fields):
    return lambda meta: meta | fields


# --- what a file says -----------------------------------------------------------------


def test_a_file_says_all_that_is_needed_to_go_on(run):
    meta = tickets.contents(stored(run)).metadata
    cfg = identity.from_stored(imp.Config, records.read_config(run))
    assert identity.from_stored(Recipe, meta["recipe"]) == Recipe(
        **{name: getattr(cfg, name) for name in Recipe.__dataclass_fields__}
    )
    determined = identity.as_config(cfg).keys() - set(identity.free(imp.Config))
    assert meta["recipe"].keys() | meta["config"].keys() == determined
    assert not meta["recipe"].keys() & meta["config"].keys()
    assert (meta["experiment"], meta["model"]) == ("imp", "mlp-8")
    data = images.load_data(cfg)
    assert meta["dataset"] == {
        "name": "mnist1d",
        "shape": [40],
        "num_classes": 10,
        "mean": list(data.mean),
        "std": list(data.std),
        "examples": {"train": 200, "validation": 1000, "test": 1000},
        "note": None,
    }
    assert meta["prunable"] == ["dense_0/kernel", "head/kernel"]
    assert meta["head"] == list(recipes.make_task(cfg).head) and meta["exclude"] == []
    assert meta["start"] == "drawn" and meta["init"] == {"seed": 0, "replica": 1}
    assert (meta["rewind_step"], meta["level"], meta["plan"]["steps"]) == (0, 2, STEPS)
    assert meta["training"] == "adam at 0.005 (constant), 8it of 100 examples"
    assert {"jax", "optax"} <= meta["versions"].keys() and meta["git_commit"]


@pytest.mark.parametrize(("level", "replica"), [(0, 0), (1, 2), (2, 1)])
def test_numbers_of_a_file_are_those_of_its_run(run, level, replica):
    found = tickets.contents(stored(run, level, replica))
    meta, results = found.metadata, records.load(run / "results.nc")
    at = results.sel(chain="imp", arm="ticket", replica=replica)
    own, dense = at.sel(level=level), at.sel(level=0)
    for name in ("test_error", "test_loss"):
        assert meta[name] == own[name].item()
        assert meta[f"dense_{name}"] == dense[name].item()
    assert meta["diverged"] is False and meta["density"] == own["density"].item()
    kernels = {
        name: mask
        for name, mask in lj.trees.by_path(found.mask).items()
        if name.endswith("kernel")
    }
    assert meta["layer_density"] == {n: m.mean() for n, m in kernels.items()}


def test_what_the_study_says_itself_nobody_else_may_say():
    task, plan = toys.classification(), lj.imp.Plan(steps=2)
    for name in ("level", "test_error", "dense_test_loss", "prunable"):
        with pytest.raises(ValueError, match=f"metadata='{name}'; it must be another"):
            lj.imp.run(task, optax.sgd(0.1), plan, levels=0, metadata={name: 1})


def test_tickets_of_other_experiments_say_as_much(monkeypatch):
    seen = {}
    monkeypatch.setattr(subnetworks.imp, "run", lambda *_, **given: seen.update(given))
    cfg = rewinding.EXPERIMENT.presets["mnist1d"].config
    setup = rewinding.stability.prepare(cfg)
    subnetworks.find(setup, setup.plan, [0], lj.Where())
    found = seen["metadata"]
    assert found["experiment"] == "rewinding" and found["dataset"]["shape"] == [40]
    again = identity.from_stored(Recipe, found["recipe"])
    assert recipes.ticket_metadata(again, "rewinding")["recipe"] == found["recipe"]
    assert found["config"]["rewind_steps"] == list(cfg.rewind_steps)


def test_recipes_in_words_say_what_changes_training():
    words = recipes.in_words(
        Recipe(
            optimizer="sgd",
            schedule="step",
            drops=("80ep", "120ep"),
            warmup="10ep",
            weight_decay=1e-4,
            augment=("flip", "crop"),
            steps="160ep",
        )
    )
    assert words == (
        "sgd at 0.005 (times 0.1 at 80ep, 120ep, warm-up over 10ep), momentum 0.9, "
        "weight decay 0.0001, 160ep of 100 examples, flip and crop"
    )
    words = recipes.in_words(
        Recipe(augment=("resized_crop", "flip"), crop=224, label_smoothing=0.1)
    )
    assert words.endswith(
        "examples, resized_crop and flip, 224 x 224 pixels, label smoothing 0.1"
    )


def test_a_ticket_of_a_sweep_is_that_of_its_setting(file):
    hyper = {"learning_rate": 0.01, "warmup": 40.0}
    of_sweep = changed(
        file,
        metadata=lambda meta: (
            meta
            | {
                "chain": meta["chain"] | {"hyper": hyper},
                "recipe": meta["recipe"] | {"sweep_learning_rate": [0.001, 0.01]},
            }
        ),
    )
    cfg = verifying.read(verifying.Verify(file=str(of_sweep))).setup.cfg
    assert (cfg.learning_rate, cfg.warmup, cfg.sweep_learning_rate) == (
        0.01,
        "40it",
        (),
    )
    said = "\n".join(inspecting.lines(of_sweep, inspecting.contents(of_sweep)))
    assert "; here learning_rate=0.01; here warmup=40" in " ".join(said.split())


# --- inspect --------------------------------------------------------------------------


def test_without_arguments_there_is_help():
    status, out, _ = command(ticket.main)
    assert status == 0 and "inspect" in out and "verify" in out


def test_inspect_prints_what_it_is_within_80_columns(run, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = command(
        ticket.main, "inspect", stored(run), "--out", tmp_path / "figures"
    )
    assert status == 0, err
    printed = out.split("Figure")[0]
    assert max(map(len, printed.splitlines())) <= 80
    text = " ".join(printed.split())
    assert "mlp-8" in text and "200 train, 1,000 validation, 1,000 test" in text
    alive = lj.schedules.geometric(400, LEVEL, 0.2)[LEVEL]
    assert f"({alive} of 400 weights)" in text
    assert "step 0 of the draw of seed 0, replica 1" in text
    assert "better than reinit: " in text  # of the run that it lies in
    layers = tickets.contents(stored(run)).metadata["layer_density"]
    for name, share in layers.items():
        assert name in text and f"{100 * share:.3g}" in text
    for name in ("masks", "receptive_fields"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 1000


def test_outside_of_its_run_no_verdicts_are_said_of_it(file, run, tmp_path):
    lines = inspecting.lines(file, tickets.contents(file))
    assert "not in the file: they are of a run" in " ".join(" ".join(lines).split())
    # Nor those of a run whose folder it merely lies in.
    for name in ("config.json", "verdicts.json"):
        shutil.copy(run / name, tmp_path / name)
    assert inspecting.stored_verdicts(file, tickets.contents(file).metadata)[
        0
    ].startswith("not in the file")


def test_old_tickets_and_digests_are_shown_with_what_they_have(tmp_path):
    for number in (1, 2):
        path = ROOT / f"tests/data/ticket_format_{number}.safetensors"
        status, out, err = command(ticket.main, "inspect", path, "--out", tmp_path)
        assert status == 0, err
        text = " ".join(out.split())
        assert "training not in the file" in text and "(7 of 16 weights)" in text
        assert "Which ones count is not in the file" in text
        assert "No receptive fields" in text
        assert ("digests of its weights alone" in text) == (number == 2)


def test_names_that_settle_nothing_are_shown_all_the_same(tmp_path):
    params = {"x": np.ones(3, np.float32), "y": np.float32(2)}
    dense = jax.tree.map(lambda p: np.ones(np.shape(p), bool), params)
    one = dense | {"x": np.array([True, False, True])}
    for mask, text in ((dense, "(4 of 4 weights)"), (one, "(2 of 3 weights)")):
        tickets.save(tmp_path / "odd", tickets.Ticket(mask, params, {}, {}))
        words = "inspect", tmp_path / "odd", "--out", tmp_path
        status, out, err = command(ticket.main, *words)
        assert status == 0 and text in out, err
    tickets.save(tmp_path / "empty", tickets.Ticket({}, {}, {}, {}))
    assert "holds no weights" in refused("inspect", tmp_path / "empty")


def test_the_first_layer_is_the_one_that_an_input_meets():
    def leaf(*shape):
        return np.ones(shape, bool)

    dense = {"dense_0": leaf(784, 30), "dense_1": leaf(30, 10)}
    assert inspecting.first_layer(dense, [28, 28, 1]) == "dense_0"
    conv = {"conv_0": leaf(3, 3, 1, 8), "conv_1": leaf(3, 3, 8, 8), "d": leaf(784, 2)}
    assert inspecting.first_layer(conv, [28, 28, 1]) == "conv_0"
    assert inspecting.first_layer(dense, [32, 32, 3]) is None


# --- verify ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verified(run, compilation_cache, tmp_path_factory):
    """A ticket that another process, elsewhere, has only the file of."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(stored(run), folder / "ticket.safetensors")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.ticket", "verify"),
            *("ticket.safetensors", "--replicas", "2", "--out", "out"),
        ],
        cwd=folder,
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": compilation_cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.slow
def test_a_ticket_retrains_elsewhere_to_the_bits_of_retraining_in_place(run, verified):
    cfg = identity.from_stored(imp.Config, records.read_config(run))
    setup = imp.prepare(cfg)
    ids = [1, 0, 2]
    found, dense = (tickets.load(stored(run, level)) for level in (LEVEL, 0))
    here = lj.imp.retrain(
        *(setup.task, setup.tx, setup.plan, [[found] * 3]),
        level=LEVEL,
        replicas=ids,
        dense=[[dense] * 3],
        where=lj.Where(lj.Execution(2, 1)),
    )
    elsewhere = records.load(verified[0] / "out" / "results.nc").sel(level=LEVEL)
    assert elsewhere["replica"].values.tolist() == ids
    assert elsewhere["arm"].values.tolist() == list(here.plan.arms)
    for name in ("test_error", "test_loss", "train_loss", "validation_loss"):
        value = elsewhere[name].transpose("chain", "arm", "replica", ...).values
        np.testing.assert_array_equal(value, here.records[name][1][:, :, :, 0], name)


@pytest.mark.slow
def test_under_its_own_noise_a_ticket_and_its_dense_network_are_those_of_then(
    run, verified
):
    results = records.load(verified[0] / "out" / "results.nc")
    meta = tickets.contents(stored(run)).metadata
    own = results["test_error"].sel(chain="imp", arm="ticket", replica=1)
    assert own.sel(level=LEVEL).item() == np.float32(meta["test_error"])
    assert own.sel(level=0).item() == np.float32(meta["dense_test_error"])


def test_verify_judges_the_new_noises_and_says_what_it_rests_on(verified):
    folder, out = verified
    results = records.load(folder / "out" / "results.nc")
    judged = json.loads((folder / "out" / "verdicts.json").read_text())
    claims = {one["claim"]: one["verdict"] for one in judged}
    assert list(claims) == [
        *("matching", "winning", "better than reinit", "better than random mask"),
        "still wins",
    ]
    new = results["test_error"].sel(chain="imp", replica=[0, 2])
    trained = new.sel(level=LEVEL)
    against = {
        "matching": new.sel(level=0, arm="ticket"),
        "better than reinit": trained.sel(arm="reinit"),
        "better than random mask": trained.sel(arm="random_mask"),
    }
    for claim, other in against.items():
        difference = (trained.sel(arm="ticket") - other).mean().item()
        assert claims[claim]["estimate"] == pytest.approx(difference, abs=1e-6)
        assert claims[claim]["n"] == 2
    assert {part["claim"] for part in claims["still wins"]["parts"]} == {
        *("winning ticket", "better than reinit", "better than random mask")
    }
    text = " ".join(out.split())
    assert "seed 0, replica 1, to the bit" in text and "%, as then, to the bit." in text
    assert "2 noises of one initialisation" in text
    assert (folder / "out" / "figures" / "verified.png").is_file()
    said = provenance.read(records.load(folder / "out" / "results.nc"))
    assert said.command.endswith(
        "experiments.ticket verify ticket.safetensors --replicas 2"
    )
    assert (said.experiment, said.figures) == ("ticket", ("verified",))
    assert "still wins" in said.shows and any(
        "still wins" in one for one in said.claims
    )


def test_a_verified_ticket_is_shown_again_and_not_trained(verified, monkeypatch):
    folder, out = verified
    monkeypatch.setattr(verifying, "train", None)
    monkeypatch.chdir(folder)
    words = "verify ticket.safetensors --replicas 2 --out out"
    status, again, err = command(ticket.main, words)
    assert status == 0, err
    assert again.split("Figure")[0] == out.split("Figure")[0]
    status, _, err = command(ticket.main, words + " --steps 6it")
    assert status == 2 and "steps: '8it' there, '6it' now" in err


def test_the_dense_network_at_a_later_step_is_trained_again(run, file):
    """Its weights are those of the draw after k steps: equal, near, or another network's."""
    cfg = identity.from_stored(imp.Config, records.read_config(run))
    setup = imp.prepare(cfg)
    own = lj.keys.of_replicas(0, [1])
    k = 3
    trunk = lj.connectivity.branches.train_trunk(
        setup.task, setup.tx, own.init, own.noise, (k,)
    )
    params = jax.tree.map(lambda x: np.asarray(x[0]), trunk.at(k).params)
    mask = tickets.load(file).mask
    late = having(rewind_step=k)
    kept = jax.tree.map(lambda m, p: np.where(m, p, 0), mask, params)

    def network(weights):
        path = changed(file, params=weights, metadata=late)
        case = verifying.read(verifying.Verify(file=str(path)))
        return verifying.dense_network(case, lj.Where())

    found, said = network(kept)
    toys.assert_equal(found.params, params)
    assert "trained to step 3, to the bit" in said[0]
    _, said = network(jax.tree.map(lambda p: p * np.float32(1 + 1e-4), kept))
    assert "up to rounding: a relative distance of 0.0001" in said[0]
    with pytest.raises(ValueError, match="relative distance of 2 away"):
        network(jax.tree.map(np.negative, kept))


# --- what is refused ------------------------------------------------------------------


def test_what_is_no_ticket_is_refused(tmp_path):
    assert "there is no ticket at" in refused("inspect", tmp_path / "none")
    assert "there is no ticket at" in refused("verify", tmp_path / "none")
    (tmp_path / "text").write_text("no ticket")
    for verb in ("inspect", "verify"):
        message = refused(verb, tmp_path / "text")
        assert "not a complete, unaltered ticket" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("recipe"), "metadata lack recipe, .* lj.imp.retrain"),
        (without("plan", "start"), "metadata lack plan, start"),
        (having(level=0), "level=0; it must be 1 or more"),
        (having(start="given"), "start='given'; it must be 'drawn'"),
        (having(rewind_step=STEPS), "rewind_step=8 lies beyond the run"),
    ],
)
def test_a_file_that_does_not_say_enough_is_refused(file, change, message):
    path = changed(file, metadata=change)
    with pytest.raises(ValueError, match=message):
        verifying.read(verifying.Verify(file=str(path)))
    refused("verify", path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", "mlp-9", "does not fit model='mlp-9' on data='mnist1d'"),
        ("model", "transformer", "model='transformer'.*must be one of"),
        ("data", "chess", "data='chess'; it must be one of"),
        ("task", "chess", "task='chess'; it must be one of classification"),
        ("moon", 1, r"the recipe of .* has fields .* does not know: \['moon'\]"),
        ("steps", "soon", "steps: .*soon"),
    ],
)
def test_a_recipe_that_is_unknown_here_is_refused(file, field, value, message):
    def other(meta):
        return meta | {"recipe": meta["recipe"] | {field: value}}

    path = changed(file, metadata=other)
    with pytest.raises(ValueError, match=message):
        verifying.read(verifying.Verify(file=str(path)))


def test_data_that_are_not_prepared_are_refused(file, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    images._load_data.cache_clear()

    def other(meta):
        return meta | {"recipe": meta["recipe"] | {"data": "svhn"}}

    status, _, err = command(ticket.main, "verify", changed(file, metadata=other))
    assert status == 2 and "'svhn' is not prepared" in err


def test_weights_that_cannot_be_drawn_again_are_refused(file, tmp_path):
    def louder(params):
        return jax.tree.map(lambda p: p * np.float32(1 + 2**-20), params)

    path = changed(file, params=louder)
    message = refused("verify", path, "--out", tmp_path / "out")
    assert "not those of the draw of seed 0, replica 1" in message
    assert "cannot be reproduced" in message
    assert not (tmp_path / "out" / "results.nc").exists()


def test_other_kinds_of_tickets_are_refused(file):
    digests = changed(file, weights="digest")
    assert "digests of its weights alone" in refused("verify", digests)

    def tuned(meta):
        return meta | {"chain": meta["chain"] | {"retrain": "finetune"}}

    path = changed(file, metadata=tuned)
    assert "retrain='finetune'; it must be 'rewind'" in refused("verify", path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--replicas 1", "replicas=1; it must be 2 or more"),
        ("--tolerance -1", "tolerance=-1"),
        ("--steps soon", "steps: "),
    ],
)
def test_flags_that_make_no_sense_are_refused(file, flags, message):
    assert message in refused("verify", file, flags)


def test_other_verbs_are_refused(file):
    status, _, _ = command(ticket.main, "train", file)
    assert status == 2


def test_masks_of_tickets_fit_the_networks_of_their_recipe(file):
    """What stands in for another framework's reader: mask and weights by their names."""
    case = verifying.read(verifying.Verify(file=str(file)))
    masks.check(case.ticket.mask, case.setup.task.shapes[0])
    assert case.ids == [1, 0, 2, 3]
