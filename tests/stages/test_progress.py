"""Progress of named steps counts what is done; it is silent where output is no terminal."""

import io

from rich.console import Console

from connector.stages.progress import StepProgress


def test_progress_of_steps_counts_finished_ones_and_names_the_one_at_hand():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with StepProgress("results", console) as progress:
        progress.start("networks")
        progress.expect(3)
        progress.start("figures")
        task = progress._bar.tasks[0]
        assert (task.completed, task.total, task.fields["note"]) == (1, 3, "figures")
        shown = console.file.getvalue()
    assert "results" in shown
    assert "figures" in shown
    assert "steps" in shown


def test_progress_is_silent_where_output_is_no_terminal():
    console = Console(file=io.StringIO(), force_terminal=False)
    with StepProgress("results", console) as progress:
        progress.expect(2)
        progress.start("networks")
    assert console.file.getvalue() == ""
