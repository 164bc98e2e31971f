"""Points one after another in one process leave memory and open files where they were."""

from tests.bench.long_run import points


def test_twenty_points_leave_memory_and_open_files_where_they_were():
    found = points(20)
    assert found["memory"][-1] <= 1.05 * found["memory"][0]
    assert max(found["files"]) == found["files"][0]
