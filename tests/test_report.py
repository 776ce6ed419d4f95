"""The report of a run: all of it from the results, whatever these are and say."""

import html.parser
import json
import pathlib
import re
import sys

import numpy as np
import pytest
import xarray as xr

from experiments import pictures, provenance, report
from experiments.groups import merge
from experiments.report import page, quantities, script, stored, tables
from lottery_jax import records, verdicts

STORED = pathlib.Path(__file__).parent.parent / "docs" / "results"
FAST = ("mnist1d", "instability-mnist1d", "reinforcement-cartpole", "supermask-mnist1d")
ARMS, REPLICAS, LEVELS = ["ticket", "reinit"], [0, 1, 2], [0, 1, 2]
LAYERS = ["dense_0/kernel", "head/kernel"]
DENSITY = np.array([1.0, 0.8, 0.64])


@pytest.fixture(autouse=True)
def without_the_script(monkeypatch, request):
    """The script that draws takes seconds to be put together."""
    if "real_script" not in request.fixturenames:
        monkeypatch.setattr(script, "vega", lambda: "/* vega */")


@pytest.fixture
def real_script():
    pytest.importorskip("vl_convert")


def study(**attributes):
    """Results as a pruning study leaves them, with numbers that are easy to follow."""
    axes = ("chain", "arm", "replica", "level")
    shape = (1, len(ARMS), len(REPLICAS), len(LEVELS))
    error = np.arange(np.prod(shape)).reshape(shape) / 100
    diverged = np.zeros(shape, np.int8)
    diverged[0, 0, 2] = 1
    error[0, 0, 2] = np.nan
    error[0, 0, 2, 0] = 0.9  # what is left of a replica that diverged
    density = np.broadcast_to(DENSITY, shape)
    layers = np.broadcast_to(density[..., None], (*shape, len(LAYERS)))
    masks = [[{n: np.ones((6, 4), bool) for n in LAYERS} for _ in LEVELS]]
    found = {
        "test_error": (axes, error.astype(np.float32)),
        "test_loss": (axes, error.astype(np.float32)),
        "train_loss": ((*axes, "step"), np.ones((*shape, 4), np.float32)),
        "density": (axes, density),
        "layer_density": ((*axes, "layer"), layers),
        "diverged": (axes, diverged),
        "dense_test_error": (("replica",), np.array([0.1, 0.2, 0.3])),
        **pictures.of_masks(masks),
        "step": (("step",), np.array([10, 20, 30, 40])),
        "layer": (("layer",), np.array(LAYERS)),
    }
    coordinates = dict(chain=["imp"], arm=ARMS, replica=REPLICAS, level=LEVELS)
    own = {
        "config": {"data": "mnist1d", "model": "mlp-9", "learning_rate": 0.5},
        "versions": {"jax": "1.2.3"},
        "seconds_last_call": 90.0,
        "device": "7 x abacus",
    }
    return records.dataset(found, coordinates, own | attributes)


def judged():
    """Verdicts as they are stored: one with an interval, and one of a single replica."""
    several = verdicts.matching(np.array([0.1, 0.11, 0.12]), np.full(3, 0.2), 0.002)
    alone = verdicts.matching(np.array([0.1]), np.array([0.2]), 0.002)
    return records.finite(
        [
            {"level": i, "claim": "matching", "verdict": verdicts.as_dict(one)}
            for i, one in enumerate((several, alone), 1)
        ]
    )


def said(**changes):
    """What a command adds to results when it ends."""
    own = dict(
        experiment="imp",
        preset="mnist1d",
        shows="The demo.",
        command="python -m experiments.imp mnist1d --levels 2 --seed 3",
        figures=["accuracy"],
        verdicts=judged(),
        claims=["matching: yes at 1 of 2 levels"],
    )
    return provenance.attributes(**(own | changes))


def put(folder, results):
    """A run folder with such results."""
    folder.mkdir(parents=True, exist_ok=True)
    records.save(folder / "results.nc", results)
    return str(folder)


def written(*folders):
    return page.html(stored.read(folders))


class Reader(html.parser.HTMLParser):
    """What a browser would load, the tags, and the text outside of scripts."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.text, self.inside = [], [], [], [""]
        self.scripts, self.ids = 0, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        own = dict(attrs)
        self.scripts += tag == "script"
        self.ids.append(own.get("id"))
        (self.links if tag == "a" else self.loads).extend(
            own[name] for name in ("src", "href") if name in own
        )
        if tag in ("script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag == self.inside[-1]:
            self.inside.pop()

    def handle_data(self, data):
        if self.inside[-1] == "":
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def data_of(text):
    """What the script of a page draws."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    return json.loads(found[1])


# --- what is drawn --------------------------------------------------------------------


def test_means_are_of_replicas_that_did_not_diverge_in_percent():
    results = study()
    one = quantities.quantity(results, "test_error", 1000)
    assert [axis.name for axis in one.axes] == ["arm", "level"]
    assert one.title == "test error (%)" and (one.across, one.lines) == (
        "density",
        "arm",
    )
    values = 100 * results["test_error"].values[0]
    np.testing.assert_allclose(one.mean[:3], values[0, :2].mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(one.low[:3], values[0, :2].min(axis=0), rtol=1e-4)
    np.testing.assert_allclose(one.high[3:], values[1].max(axis=0), rtol=1e-4)
    assert one.n == [2, 2, 2, 3, 3, 3]
    assert one.density == [100, 80, 64] * 2


def test_what_networks_are_compared_by_comes_first():
    names = [one.name for one in quantities.found(study())]
    assert names[0] == "test_error"
    assert set(names) == set(study().data_vars) - {*pictures.NAMES, "dense_test_error"}
    assert quantities.found(study(), compared="loss")[0].name == "test_error"
    perplexity = study().rename(test_loss="test_perplexity")
    by = quantities.found(perplexity, compared="perplexity")
    assert by[0].name == "test_perplexity" and by[0].title == "test perplexity"


def test_without_an_axis_there_is_a_number():
    (one,) = quantities.numbers(study())
    assert one.title == "dense test error (%)" and one.n == 3
    np.testing.assert_allclose((one.mean, one.low, one.high), (20, 10, 30))


def test_long_axes_are_thinned_out_and_keep_their_ends():
    results = xr.Dataset(
        {"loss": (("arm", "step"), np.arange(2000.0).reshape(2, 1000))},
        coords={"arm": ["a", "b"], "step": np.arange(1000)},
    )
    one = quantities.quantity(results, "loss", 100)
    steps = one.axes[1].values
    assert len(one.mean) <= 100 and (steps[0], steps[-1]) == (0, 999)
    assert one.mean[: len(steps)] == steps  # still the values of these steps
    assert one.thinned == f"{len(steps)} of 1000 places of step"


@pytest.mark.parametrize(
    "places, scale",
    [
        ([0, 0.25, 0.5, 0.75, 1.0], "linear"),
        (np.linspace(0, 1, 30, dtype=np.float32), "linear"),
        ([0, 30, 100, 300, 1000], "symlog"),
        ([0.001, 0.003, 0.01, 0.1], "log"),
        ([2, 4, 6], "linear"),
        ([-1.0, 5.0, 100.0], "linear"),
    ],
)
def test_axes_are_logarithmic_where_their_places_lie_decades_apart(places, scale):
    own = xr.DataArray(np.zeros(len(places)), {"k": np.array(places)}, ["k"])
    assert quantities.axis(own, "k").scale == scale


def test_a_density_axis_falls_in_percent():
    own = xr.DataArray(np.zeros(3), {"density": [0.5, 0.1, 0.02]}, ["density"])
    one = quantities.axis(own, "density")
    assert (one.scale, one.falling, one.values) == ("log", True, [50, 10, 2])


def test_where_all_replicas_diverged_there_are_places_without_a_value():
    results = study()
    results["diverged"] = results["diverged"] * 0 + 1
    results["dense_diverged"] = results["dense_test_error"] * 0 + 1
    found = {one.name: one for one in quantities.found(results)}
    assert not any(found["test_error"].n) and set(found["test_error"].mean) == {None}
    assert next(iter(found)) == "diverged"  # what has values comes first
    (number,) = (x for x in quantities.numbers(results) if "test error" in x.title)
    assert (number.mean, number.n) == (None, 0)


def test_when_a_network_diverged_is_said_of_those_that_did():
    results = study()
    when = np.where(results["diverged"] > 0, 12.0, np.nan)
    results["first_nan"] = (results["diverged"].dims, when)
    (one,) = (x for x in quantities.found(results) if x.name == "first_nan")
    assert {x for x in one.mean if x is not None} == {12}


def test_density_lies_across_though_controls_have_none_at_level_0():
    results = study()
    arm, first = results["arm"].values[1], results["level"].values[0]
    there = (results["arm"] == arm) & (results["level"] == first)
    for name in ("density", "test_error"):
        results[name] = results[name].where(~there)
    one = quantities.quantity(results, "test_error", 1000)
    assert one.across == "density" and one.density == [100, 80, 64, None, 80, 64]
    # A value without a density would be left out: then levels are what lies there.
    results["test_error"] = study()["test_error"]
    one = quantities.quantity(results, "test_error", 1000)
    assert (one.across, one.density) == ("level", None)


@pytest.mark.parametrize(
    "places, labels",
    [
        ([116000, 117150, 117190, 117191], ["116000", "117150", "117190", "117191"]),
        ([0.1, 0.2, 1 / 3], ["0.1", "0.2", "0.3333"]),
        ([0.123456, 0.123457], ["0.123456", "0.123457"]),
        ([1.0, 1.0 + 2e-16], ["1.0", "1.0000000000000002"]),
    ],
)
def test_places_are_told_apart(places, labels):
    own = xr.DataArray(np.zeros(len(places)), {"step": np.array(places)}, ["step"])
    one = quantities.axis(own, "step")
    assert one.labels == labels and one.values == places


@pytest.mark.parametrize(
    "name, compared, unit, scale",
    [
        ("test_error", "", "%", 100),
        ("lii", "error", "points", 100),
        ("lii", "perplexity", "", 1),
        ("lii", "", "", 1),
        ("lii_f1", "error", "points", 100),
        ("lii_loss", "error", "nats", 1),
        ("level_barrier", "error", "points", 100),
        ("weight_error", "error", "", 1),
        ("golden_error", "", "", 1),
        ("overlap_by_chance", "", "%", 100),
    ],
)
def test_units_are_those_of_what_is_stored(name, compared, unit, scale):
    shown = quantities.how_shown(name, compared)
    assert (shown.unit, shown.of(1.0)) == (unit, scale)


def test_intervals_of_several_units_have_axes_of_their_own():
    def verdict(unit, low, high):
        numbers = dict(estimate=(low + high) / 2, low=low, high=high, tolerance=0.0)
        return {"claim": "wins", "verdict": {"answer": "no", "unit": unit, **numbers}}

    steps, points = (verdict("steps", -3000, 1500), verdict("error", -0.02, 0.01))
    (claim,) = tables.claims([steps, points])
    assert claim.axis == ("each unit has", "an axis of its own")
    assert [row.drawn.width > 50 for row in claim.rows] == [True, True]
    (alone,) = tables.claims([points])
    assert alone.axis == ("-2.12", "1.12")


# --- pictures -------------------------------------------------------------------------


def test_a_picture_is_the_share_that_survives():
    random = np.random.default_rng(0)
    for shape in ((7, 5), (96, 144), (3, 3, 4, 50), (300, 1), (9,)):
        mask = random.random(shape) < 0.3
        drawn = pictures.picture(mask)
        assert drawn.dtype == np.uint8 and max(drawn.shape) <= pictures.MOST
        assert drawn.shape[0] == min(shape[-1], pictures.MOST)
        assert (pictures.picture(np.ones(shape, bool)) == 255).all()
        assert not pictures.picture(np.zeros(shape, bool)).any()
        fewer = mask & (random.random(shape) < 0.5)
        assert (pictures.picture(fewer) <= drawn).all()  # nested masks stay so
    small = random.random((7, 5)) < 0.5
    np.testing.assert_array_equal(pictures.picture(small), 255 * small.T)
    even = random.random((96, 144)) < 0.5  # blocks of 2 x 3: means survive
    np.testing.assert_allclose(
        pictures.picture(even).mean() / 255, even.mean(), atol=2e-3
    )


def test_pictures_of_unlike_layers_lie_side_by_side():
    leaves = {"a": np.ones((3, 2), bool), "b": np.ones((2, 60), bool)}
    found = pictures.of_masks([[leaves, leaves]])
    axes, drawn = found["mask_picture"]
    assert axes == ("chain", "level", "layer", "row", "column")
    assert drawn.shape == (1, 2, 2, 48, 3)
    assert found["mask_rows"][1].tolist() == [2, 48]
    assert found["mask_columns"][1].tolist() == [3, 2]
    assert drawn.sum() == 255 * 2 * (2 * 3 + 48 * 2)


def test_replicas_that_are_added_leave_the_pictures_of_the_first():
    first = study()
    later = study().drop_vars(pictures.NAMES).assign_coords(replica=[3, 4, 5])
    for parts in ([first, later], [first, later.isel(level=slice(2))]):
        merged = merge(parts)
        levels = merged.sizes["level"]
        assert merged.sizes["replica"] == 6
        xr.testing.assert_equal(
            merged["mask_picture"], first["mask_picture"].isel(level=slice(levels))
        )


def test_pictures_are_shown_with_the_densities_of_their_layers():
    own = page.pictures(study(), 10**6)
    assert own["chains"] == ["imp"] and own["levels"] == LEVELS
    assert [layer["name"] for layer in own["layers"]] == LAYERS
    assert own["densities"][0][1] == [80, 80]
    assert page.pictures(study(), 1)["levels"] == [0]  # what does not fit is left out
    assert page.pictures(study().drop_vars(pictures.NAMES), 10**6) is None


# --- what is written ------------------------------------------------------------------


def test_a_page_says_what_its_results_say(tmp_path):
    folder = put(tmp_path / "run", study(**said(), note="Some images are inexact."))
    text = written(folder)
    words = Reader(text).words
    for part in (
        *("imp mnist1d", "The demo.", "Some images are inexact.", "7 x abacus"),
        *("1.5 minutes", "jax 1.2.3", "matching: yes at 1 of 2 levels", "mlp-9"),
        "python -m experiments.imp mnist1d --levels 2 --seed 3",
        "dense test error (%)",
    ):
        assert part in words, part
    # What differs from the preset, and the interval in points.
    assert "learning_rate 0.5 0.005" in words
    assert "-9.00" in words and "points" in words
    assert "no interval" in words
    (run,) = data_of(text)["runs"]
    assert list(run["quantities"])[0] == "test_error"
    assert run["pictures"]["levels"] == LEVELS


def test_a_page_loads_nothing(tmp_path):
    read = Reader(written(put(tmp_path / "run", study(**said()))))
    assert all(load.startswith("data:") for load in read.loads)
    assert all(link.startswith("#") for link in read.links)
    assert {link[1:] for link in read.links} <= set(read.ids)


def test_text_of_strangers_is_text(tmp_path):
    evil = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'
    attributes = said(shows=evil, command=evil, claims=[evil], preset=evil) | {
        "note": evil,
        "config": {evil: evil, "model": evil, "data": evil},
        "device": evil,
        "versions": {evil: evil},
    }
    verdict = {"level": evil, evil: evil, "claim": evil, "verdict": {"answer": evil}}
    attributes["verdicts"] = json.dumps([verdict, {"claim": "y", "verdict": {}}])
    results = study(**attributes)
    results = results.assign_coords(arm=["ticket", evil])
    results[f"test_error {evil.replace('/', '|')}"] = results["test_error"]
    plain = Reader(written(put(tmp_path / "plain", study(**said()))))
    text = written(put(tmp_path / "run", results))
    read = Reader(text)
    assert read.scripts == plain.scripts and "<img" not in text
    assert evil in read.words
    assert (
        evil
        in data_of(text)["runs"][0]["quantities"]["test_error"]["axes"][0]["labels"]
    )


def test_results_that_say_nothing_become_a_page(tmp_path):
    bare = xr.Dataset({"error": (("replica", "x1"), np.ones((2, 3)))})
    words = Reader(written(put(tmp_path / "run", bare))).words
    assert "These results hold no verdicts" in words
    assert (
        "hold no pictures of masks" in words and "experiments.ticket inspect" in words
    )
    text = written(put(tmp_path / "empty", xr.Dataset()))
    assert data_of(text)["runs"][0]["quantities"] == {}


def test_several_runs_are_side_by_side_and_their_differences_a_table(tmp_path):
    one = study(**said(), config={"data": "a", "seed": 1, "out": "there"})
    two = study(**said(), config={"data": "a", "seed": 2, "rule": "exact", "out": None})
    folders = [put(tmp_path / "a/run", one), put(tmp_path / "b/run", two)]
    runs = stored.read(folders)
    assert [run.name for run in runs] == ["a/run", "b/run"]
    text = page.html(runs)
    assert [run["name"] for run in data_of(text)["runs"]] == ["a/run", "b/run"]
    words = Reader(text).words
    assert "seed 1 2" in words and "rule - exact" in words
    configs = [run.said.config for run in runs]
    assert [name for name, _ in tables.differing(configs)] == ["seed", "rule"]
    path = report.write(folders)  # in the folder that both lie in
    assert path.resolve() == (tmp_path / report.NAME).resolve() and path.is_file()


def test_claims_have_their_places_and_what_must_be_said(tmp_path):
    (claim,) = tables.claims(judged())
    sure, alone = claim.rows
    assert claim.header == ["level"] and claim.counts == "yes 1, undecided 1"
    assert (sure.place, sure.answer, sure.n, sure.unit) == (["1"], "yes", "3", "points")
    assert sure.estimate == "-9.00" and sure.tolerance == "<= +0.20"
    drawn = sure.drawn
    assert (
        0 < drawn.low < drawn.estimate < drawn.low + drawn.width < drawn.tolerance < 100
    )
    assert alone.drawn is None and alone.interval == "none"
    assert tables.claims([]) == []
    # What is the same at all places is no column.
    same = [one | {"chain": "imp"} for one in judged()]
    assert tables.claims(same)[0].header == ["level"]
    excluded = [judged()[0]["verdict"] | {"excluded": ["replica 1"], "reason": "few"}]
    row = tables.claims([{"claim": "x", "verdict": excluded[0]}])[0].rows[0]
    assert row.more == "few; diverged: replica 1"


def test_where_to_go_on_follows_from_the_command(tmp_path):
    (run,) = stored.read([put(tmp_path / "a run", study(**said()))])
    found = dict(page.commands(run, page.experiment("imp")))
    path = tmp_path / "a run" / "config.json"
    assert found["The same in a new folder"] == run.said.command
    path.write_text("{}")
    again = dict(page.commands(run, page.experiment("imp")))
    (missing,) = (text for does, text in again.items() if "returns at once" in does)
    assert missing == f"{run.said.command} --out '{run.folder}'"
    (grown,) = (
        text for does, text in found.items() if "nothing is trained twice" in does
    )
    assert grown == (
        "python -m experiments.imp mnist1d --seed 3 --replicas 5 --levels 4 --out "
        f"'{run.folder}'"
    )
    assert any(f"--from '{run.folder}' --level 2" in text for text in found.values())
    code = found["The results, with named axes"]
    exec(code.replace("print(results)", "assert results.sizes['replica'] == 3"), {})
    # Replicas that are compared with each other are not added to.
    alone = dict(page.commands(run, page.experiment("alignment")))
    assert not any("nothing is trained twice" in does for does in alone)
    assert (
        page.experiment("no_such_thing") is None and page.experiment("groups") is None
    )


def test_the_page_fits_with_its_script(tmp_path, real_script):
    text = script.vega()
    assert "</script" not in text.lower() and "vegaEmbed" in text
    path = report.write([put(tmp_path / "run", study(**said()))])
    assert path == tmp_path / "run" / "report.html"
    assert path.stat().st_size < 5e6
    assert text in path.read_text()
    assert Reader(path.read_text()).scripts == 3


@pytest.mark.parametrize(
    "folder",
    [
        pytest.param(
            path.parent, marks=[] if path.parent.name in FAST else pytest.mark.slow
        )
        for path in sorted(STORED.glob("*/results.nc"))
    ],
    ids=lambda folder: folder.name,
)
def test_every_stored_result_becomes_a_page(folder):
    (run,) = stored.read([str(folder)])
    text = page.html([run])
    assert len(text) < 2.5e6
    (own,) = data_of(text)["runs"]
    assert own["quantities"]
    for name, one in own["quantities"].items():
        places = np.prod([len(axis["labels"]) for axis in one["axes"]])
        assert len(one["mean"]) == len(one["n"]) == places, name
        names = [axis["name"] for axis in one["axes"]]
        assert one["across"] in [*names, "density"] and one["lines"] in [*names, ""]
        assert (one["across"] == "density") <= (
            "density" in names or bool(one["density"])
        )
    for claim in {one["claim"] for one in run.said.verdicts}:
        assert claim in Reader(text).words


# --- the command ----------------------------------------------------------------------


def fails(capsys, *arguments):
    """The line that a command ends with."""
    assert report.main(list(map(str, arguments))) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_the_command_writes_where_it_is_told(tmp_path, capsys):
    folder = put(tmp_path / "run", study(**said()))
    out = tmp_path / "new" / "page.html"
    assert report.main([folder, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"Report: {out}\n"
    assert out.read_text().startswith("<!doctype html>")
    with pytest.raises(SystemExit) as ended:
        report.main([])
    assert ended.value.code == 0 and "FOLDER" in capsys.readouterr().out.upper()


def test_what_cannot_be_done_is_said_in_a_line(tmp_path, capsys):
    assert "there is no folder" in fails(capsys, tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    assert "holds no results" in fails(capsys, tmp_path / "bare")
    assert "FOLDER='gs://bucket/run'" in fails(capsys, "gs://bucket/run")
    good = put(tmp_path / "good", study(**said()))
    assert "named twice" in fails(capsys, good, good)
    assert "out='s3://a/b'" in fails(capsys, good, "--out", "s3://a/b")
    assert "there is a folder" in fails(capsys, good, "--out", tmp_path)
    (tmp_path / "file").write_text("")
    assert "file" in fails(capsys, good, "--out", tmp_path / "file" / "page.html")


def test_damaged_results_are_named(tmp_path, capsys):
    path = pathlib.Path(put(tmp_path / "run", study(**said()))) / "results.nc"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert "results.nc is damaged" in fails(capsys, path.parent)
    path.with_name("results.nc.sha256").unlink()  # as it was handed over
    path.write_bytes(whole[:2000])
    assert "results.nc is damaged" in fails(capsys, path.parent)
    path.write_bytes(b"no NetCDF at all")
    assert "results.nc is damaged" in fails(capsys, path.parent)
    path.write_bytes(whole)
    assert report.main([str(path.parent)]) == 0
    capsys.readouterr()
    for name, value in (
        *(("claims", "[no JSON"), ("config", "[1]"), ("verdicts", "[1]")),
        *(("verdicts", '[{"verdict": 1}]'), ("versions", "3"), ("claims", '"yes"')),
    ):
        put(path.parent, study(**said() | {name: value}))
        assert f"the attribute {name!r} is damaged" in fails(capsys, path.parent)
    put(path.parent, study(**said(command="a quote ' that never ends")))
    assert report.main([str(path.parent)]) == 0


def test_a_run_is_not_stopped_by_its_report(tmp_path, monkeypatch):
    results = study(**said())
    assert report.leave(tmp_path, results) == f"Report: {tmp_path / report.NAME}"
    for broken, error, words in (
        ("vega", script.missing(), "pip install 'lottery-jax[experiments]'"),
        ("vega", RuntimeError("out of luck"), "No report: out of luck"),
    ):

        def fail(error=error):
            raise error

        monkeypatch.setattr(script, broken, fail)
        assert words in report.leave(tmp_path, results)


def test_a_missing_package_is_named_with_its_extra(monkeypatch, real_script, tmp_path):
    monkeypatch.setenv("LOTTERY_JAX_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(ImportError, match=r"lottery-jax\[experiments\]"):
        script.vega()
    page.template.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"lottery-jax\[experiments\]"):
        page.template()
