"""The maximum-entropy distribution over connection weights: flows, nu, what holds samples to the recorded drive."""

from connector.moved import lazily

__getattr__ = lazily(__name__, "connectivity.distribution")
