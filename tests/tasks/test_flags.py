"""What evaluate.py reads from a task's function and file."""

import evaluate
from market_jax.tasks import compare, junk
from market_jax.tasks import map as map_task


def test_a_task_that_compares_takes_rows_of_runs():
    assert evaluate.takes_several(compare.run)
    assert not evaluate.takes_several(junk.run)
    assert "rows" not in evaluate.task_arguments(compare.run)


def test_every_flag_of_a_task_has_a_help():
    arguments = evaluate.task_arguments(map_task.run)
    assert arguments["count"] is int
    assert evaluate._helps(map_task.run).keys() >= arguments.keys()
