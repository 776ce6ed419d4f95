"""How long something still takes, by a clock that the tests turn."""

import io
import sys
import types

import numpy as np
import pytest

import lottery_jax as lj
from lottery_jax.execution import Progress, pace
from lottery_jax.execution.pace import Pace, left, paced, remaining


def told(events, last=None):
    """The seconds that are left after each of (seconds since the one before, progress)."""
    found, now, said = Pace(), 1000.0, []
    for took, at in events:
        now += took
        found = paced(found, at, now)
        said.append(remaining(found, at, last))
    return said


def level(number, done, resumed=False, start=0, total=100, rows=4, last=3):
    return Progress("training", done, total, rows, start, number, resumed, last=last)


def study(first=0, done=0, compiling=50.0, step=0.1, between=5.0, last=3):
    """A study of levels 0 to `last`, taken up at a step of a level, in pieces of 25 steps."""
    yield 0.0, level(first, done, resumed=done > 0 or first > 0, last=last)
    for number in range(first, last + 1):
        begin = done if number == first else 0
        if number > first:
            yield between, level(number, 0, last=last)
        for at in range(begin + 25, 101, 25):
            more = compiling if (number, at) == (first, begin + 25) else 0.0
            yield 25 * step + more, level(number, at, last=last)


def test_a_study_says_how_long_all_levels_take_without_its_compilation():
    said = told(study())
    assert said[:2] == [
        None,
        None,
    ]  # begun, and the piece in which programs are compiled
    # 50 steps of level 0 and three levels of 100, 0.1 s each; what lies between is unknown.
    assert said[2] == pytest.approx(0.1 * 350)
    after_level_1 = 10  # two levels of a beginning and four pieces
    assert said[after_level_1 - 1] == pytest.approx(0.1 * 200 + 2 * 5)
    assert said[-1] == 0
    known = [one for one in said if one is not None]
    assert max(known) < 60


def test_levels_that_begin_at_the_rewind_step_are_shorter_than_level_0():
    """10 levels of 500 of 1,000 steps, at 100 steps/s; rows cancel out."""
    events = [
        (1.0, level(0, at, total=1000, last=10)._replace(again=500))
        for at in range(0, 1001, 100)
    ]
    said = told(events)
    assert said[2:] == pytest.approx([8 - i + 10 * 5 for i in range(9)])


def test_a_study_that_was_taken_up_again_counts_what_it_did_since():
    said = told(study(first=2, done=50, last=7))
    assert said[:2] == [None, None]
    assert said[2] == pytest.approx(0.1 * 500)
    assert said[3] == pytest.approx(0.1 * 500 + 4 * 5)
    assert said[-1] == 0


def test_what_was_before_a_run_was_taken_up_within_a_process_is_forgotten():
    events = [*study(last=1), (500.0, level(1, 50, resumed=True, last=1))]
    assert told(events)[-1] is None


def test_the_first_time_between_levels_is_replaced_by_the_next():
    events = list(study(last=4))
    slow = next(i for i, (_, at) in enumerate(events) if at.level == 1)
    events[slow] = (300.0, events[slow][1])
    said = told(events)
    third = next(i for i, (_, at) in enumerate(events) if at.level == 2)
    assert said[slow] == pytest.approx(0.1 * 400 + 3 * 300)
    assert said[third] == pytest.approx(0.1 * 300 + 2 * 5)


def test_more_networks_take_longer():
    events = list(study())
    wide = [(took, at._replace(rows=8 if at.level else 4)) for took, at in events]
    first = next(i for i, (_, at) in enumerate(events) if at.level == 1)
    assert told(wide)[first] == pytest.approx(2 * 0.1 * 300 + 2 * 5)


def test_a_stage_counts_for_itself():
    events = [
        (0.0, Progress("trunk", 0, 100, 2)),
        *[(40.0, Progress("trunk", n, 100, 2)) for n in (25, 50, 75, 100)],
        (0.0, Progress("paths", 0, 9000, 6)),
        (1.0, Progress("paths", 3000, 9000, 6)),
        (1.0, Progress("paths", 6000, 9000, 6)),
    ]
    said = told(events)
    assert said[:5] == [None, None, 80, 40, 0]
    assert said[5:] == [None, None, 1]


def test_speed_that_changes_is_followed():
    slow = [(took, at) for took, at in study(compiling=0.0, last=9)]
    doubled = [(took * (1 + (at.level >= 2)), at) for took, at in slow]
    said = told(doubled)
    at = next(i for i, (_, one) in enumerate(doubled) if one.level == 8)
    truth = 0.2 * 200 + 10
    assert said[at] == pytest.approx(truth, rel=0.1)


def test_the_last_level_is_the_callers_where_nothing_is_told():
    events = [(took, at._replace(last=None)) for took, at in study()]
    assert told(events)[2] == pytest.approx(0.1 * 50)
    assert told(events, last=3)[2] == pytest.approx(0.1 * 350)


@pytest.mark.parametrize(
    ["seconds", "said"],
    [
        (None, ""),
        (0.0, ""),
        (0.2, "about 1 s left"),
        (41.4, "about 41 s left"),
        (89.9, "about 90 s left"),
        (100, "about 2 min left"),
        (5000, "about 83 min left"),
        (7300, "about 2 h 02 min left"),
        (3 * 86400, "about 3 days left"),
    ],
)
def test_seconds_in_words(seconds, said):
    assert left(seconds) == said


class Clock:
    """Seconds that the test turns on."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def watch(events, terminal):
    """What the line of some events is."""
    out, clock = io.StringIO(), Clock()
    out.isatty = lambda: terminal
    watcher = pace.line(out, clock)
    for took, at in events:
        clock.now += took
        watcher(at)
    return out.getvalue()


def test_off_a_terminal_a_level_is_a_line():
    lines = watch(study(), terminal=False).splitlines()
    # The compilation took more than 30 s.
    assert lines[0] == "level 0 of 3, step 25 of 100: 4 networks, 52 s"
    assert lines[1].startswith(
        "level 0 of 3, step 100 of 100: 4 networks, 60 s, about "
    )
    assert [text[:12] for text in lines[1:]] == [f"level {n} of 3" for n in range(4)]
    trunk = [(0.0, Progress("trunk", 0, 9000, 1)), (9.0, Progress("trunk", 9, 9000, 1))]
    assert watch(trunk, terminal=False) == ""


def test_on_a_terminal_one_line_changes():
    text = watch(study(), terminal=True)
    assert text.startswith("\rlevel 0 of 3, step 0 of 100: 4 networks, 0 s")
    assert text.count("\n") == 4 and text.endswith("\n")
    first, *rest = text.split("\n")[0].split("\r")[1:]
    # A shorter line leaves nothing of a longer one behind.
    assert all(len(b) >= len(a.rstrip()) for a, b in zip([first, *rest], rest))


def test_in_a_notebook_the_output_of_the_cell_changes(monkeypatch):
    shown = []

    class Handle:
        def display(self, data, raw):
            shown.append(data)

        update = display

    display = types.SimpleNamespace(DisplayHandle=Handle)
    shell = types.SimpleNamespace(kernel=None)
    module = types.ModuleType("IPython")
    module.display, module.get_ipython = display, lambda: shell
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    watcher = pace.line(clock=Clock())
    watcher(level(0, 0))
    watcher(level(0, 100))
    assert [list(one) for one in shown] == [["text/plain"]] * 3
    assert shown[-1]["text/plain"].startswith("level 0 of 3, step 100 of 100")


def test_a_study_tells_its_last_level(monkeypatch):
    """What the library trains says enough for a line."""
    from lottery_jax.imp import study as module

    seen = []
    where = module._within(lj.Where(watch=seen.append), 2, 5, True, 0)
    where.tell(Progress("training", 0, 10, 3))
    where.tell(Progress("training", 5, 10, 3))
    assert [(at.level, at.last, at.resumed) for at in seen] == [
        (2, 5, True),
        (2, 5, False),
    ]
    assert np.isclose(remaining(Pace(seconds=1.0, steps=15.0), seen[1]), 35 * 3 / 15)
