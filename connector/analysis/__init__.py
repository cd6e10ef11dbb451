"""Measures of networks, states and predictions, each with its null."""
