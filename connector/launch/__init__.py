"""One job, a sweep, several processes, many fits as one, Weights & Biases."""
