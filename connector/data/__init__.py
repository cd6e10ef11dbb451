"""Where activity comes from: teacher networks, recordings, their folds and batches."""
