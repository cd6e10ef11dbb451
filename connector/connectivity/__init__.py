"""The maximum-entropy distribution over connection weights: flows, nu, what holds samples to the recorded drive."""
