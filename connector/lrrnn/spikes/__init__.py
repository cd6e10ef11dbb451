"""Spikes: baselines, the model with an encoder, its loops over time, the closed form for many neurons."""
