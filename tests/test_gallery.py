"""The gallery says what stored results say of themselves, and is what is committed."""

import re

import pytest
import xarray as xr

from experiments import gallery, provenance

CLAIMS = [
    "matching: yes at 9 of 16 densities, no at 4, undecided at 3 (16 comparisons; after "
    "Bonferroni: yes 8, no 3)",
    "winning: undecided (1 comparison)",
    "better than reinit: yes at 2 of 2 levels (no interval)",
    "stable: no (1 comparison)",
    "Paired 95% intervals, n = 5.",
]


def store(docs, name="mnist1d", figure=True, **said):
    """A folder with results that say this of themselves."""
    own = dict(
        experiment="imp",
        preset="mnist1d",
        shows="Tickets of Frankle et al. match. Under a minute.",
        command="python -m experiments.imp mnist1d",
        figures=["accuracy"],
        verdicts=[],
        claims=CLAIMS,
    )
    attributes = provenance.attributes(**own | said)
    attributes |= {"device": "2 x cpu (cpu)", "seconds_last_call": 90.0}
    folder = docs / "results" / name
    folder.mkdir(parents=True)
    xr.Dataset(attrs=attributes).to_netcdf(folder / "results.nc", engine="h5netcdf")
    if figure:
        (folder / "accuracy.png").write_bytes(b"a picture")
    return folder


@pytest.fixture(scope="module")
def committed():
    return gallery.cards(gallery.DOCS)


def test_the_committed_page_is_what_the_results_say(committed):
    text = gallery.page(committed)
    assert (gallery.DOCS / "gallery.md").read_text() == text, (
        "python -m experiments.gallery writes it anew"
    )
    stored = {path.name for path in (gallery.DOCS / "results").iterdir()}
    shown = set(re.findall(r"!\[[^\]]+\]\(results/([^/]+)/", text))
    assert shown == {name for name in stored if "." not in name}


def test_every_claim_is_one_sentence_without_a_recipe(committed):
    for card in committed:
        said = gallery.claim(card.said.shows)
        assert said.endswith(".") and 40 < len(said) < 170, said
        assert "replicas" not in said and "cores" not in said, said


def test_a_card_says_all_of_its_result(tmp_path):
    store(tmp_path)
    readme = "# R\n\n## MNIST-1D: the demo (0.1)\n\n![a](mnist1d/accuracy.png)\n"
    (tmp_path / "results" / "README.md").write_text(readme)
    (card,) = gallery.cards(tmp_path)
    text = gallery.page([card])
    assert "![accuracy of imp mnist1d](results/mnist1d/accuracy.png)" in text
    assert "| Tickets of Frankle et al. match.<br>" in text and "minute." not in text
    assert (
        "matching: yes at 9 of 16 densities, no at 4, undecided at 3<br>winning: "
        "undecided<br>better than reinit: yes at 2 of 2 levels<br>and 1 more claim<br>"
    ) in text
    assert "`python -m experiments.imp mnist1d`" in text
    assert "2 x cpu, 1.5 minutes" in text
    assert "(results/README.md#mnist-1d-the-demo-01)" in text
    assert "(results/mnist1d/table.md)" in text and "mnist1d/results.nc)" in text


def test_cards_come_in_the_order_of_the_survey_and_of_presets(tmp_path):
    store(tmp_path, "a", experiment="transfer", preset="lenet")
    store(tmp_path, "b", preset="lenet-fashion")
    store(tmp_path, "c", preset="of before")
    store(tmp_path, "d")
    found = gallery.cards(tmp_path)
    assert [card.name for card in found] == ["d", "b", "c", "a"]
    text = gallery.page(found)
    assert text.index("## Iterative magnitude") < text.index("## Tickets that travel")
    # As many cells in each line of a table as in its first.
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert {line.count(" |") for line in table.splitlines()} == {gallery.ABREAST}


def test_what_a_cell_holds_does_not_end_it(tmp_path):
    store(tmp_path, claims=["a|b: yes (1 comparison)"])
    assert "a\\|b: yes<br>" in gallery.page(gallery.cards(tmp_path))
    assert gallery.verdicts([]) == ["no verdict recorded"]
    assert gallery.verdicts(["Paired 95% intervals, n = 3."]) == ["no verdict recorded"]


def test_the_command_writes_and_checks(tmp_path, capsys):
    store(tmp_path)
    given = ["--docs", str(tmp_path)]
    assert gallery.main([*given, "--check"]) == 1
    assert "gallery.md is not what the results say" in capsys.readouterr().out
    assert gallery.main(given) == 0 and gallery.main([*given, "--check"]) == 0
    page = tmp_path / "gallery.md"
    page.write_text(page.read_text().replace("1.5 minutes", "0.1 minutes"))
    before = page.read_text()
    assert gallery.main([*given, "--check"]) == 1 and page.read_text() == before


@pytest.mark.parametrize(
    ["spoil", "says"],
    [
        (lambda docs: None, r"docs='.*'; it must be a folder with results/NAME"),
        (
            lambda docs: store(docs, figure=False),
            r"mnist1d has no figure accuracy\.png",
        ),
        (lambda docs: store(docs, figures=[]), r"mnist1d has no figure: "),
        (
            lambda docs: store(docs, command=""),
            r"results\.nc does not say what made it",
        ),
        (lambda docs: store(docs, experiment="x"), r"does not say what made it"),
        (
            lambda docs: (store(docs) / "results.nc").write_bytes(b"\x89HDF, cut off"),
            r"results\.nc is damaged: ",
        ),
        (lambda docs: (store(docs) / "results.nc").unlink(), r"holds no results\.nc"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, capsys, spoil, says):
    spoil(tmp_path)
    assert gallery.main(["--docs", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and re.search(says, line), line
    assert not (tmp_path / "gallery.md").exists()
