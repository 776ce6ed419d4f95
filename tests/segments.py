"""What an experiment trains, segment by segment, and where it is interrupted."""

import contextlib

import pytest

from experiments import display


@contextlib.contextmanager
def watched(root, seen, stops=()):
    """Notes each segment that is trained, and interrupts some the first time."""

    @contextlib.contextmanager
    def progress(folder, *_, **__):
        def watch(at):
            if at.resumed or at.done == at.start:
                return
            part = str(folder.relative_to(root))
            seen.append((part, at.stage, at.level, at.done))
            if seen[-1] in stops and seen.count(seen[-1]) == 1:
                raise KeyboardInterrupt

        yield watch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(display, "progress", progress)
        yield
