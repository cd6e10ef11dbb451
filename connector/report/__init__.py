"""The report of a run: every sentence a reader meets."""
