"""nu = E[n | m, b, d]: estimators and what the data determine."""
