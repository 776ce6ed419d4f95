"""Groups of replicas in the folder of a run."""

import pytest

from experiments import groups

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_new_replicas_come_in_as_many_groups_as_there_are_processes(tmp_path, parts):
    found = groups.groups(tmp_path, 7, parts)
    assert [i for _, ids in found for i in ids] == list(range(7))
    assert len(found) == parts
    assert max(len(ids) for _, ids in found) - min(len(ids) for _, ids in found) <= 1


def test_stored_groups_stay_and_gaps_are_filled(tmp_path):
    (tmp_path / "replicas-002-003").mkdir()
    found = {path.name: ids for path, ids in groups.groups(tmp_path, 6, 2)}
    assert found == {
        "replicas-002-003": [2, 3],
        "replicas-000-001": [0, 1],
        "replicas-004-005": [4, 5],
    }
