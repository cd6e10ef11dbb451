"""Sessions as the public ones are stored, and options under which a fit to one takes seconds."""

import numpy as np
from scipy.io import savemat

QUICK = [
    "stages=[lrrnn]", "lrrnn.max_epochs=2", "lrrnn.n_units=8", "lrrnn.posterior_sweeps=4", "trainer.threads=1",
]  # fmt: skip


def session(path, seed: int):
    """Forty trials of five neurons in which clicks drive spikes and choices, as the public sessions are stored."""
    rng = np.random.default_rng(seed)

    def cells(items):
        array = np.empty((len(items), 1), dtype=object)
        array[:, 0] = items
        return array

    trials = []
    for i in range(40):
        steps, favoured = int(rng.integers(20, 40)), int(rng.integers(2))
        clicks = [
            np.r_[0, np.sort(rng.uniform(0.01, steps / 100, size=rng.poisson(8 if side == favoured else 2)))]
            for side in (0, 1)
        ]
        rate = np.where(np.arange(5) % 2 == favoured, 0.3, 0.1)
        trials.append(
            {
                "choice": np.uint8(favoured),
                "clicktimes": {"L": clicks[0], "R": clicks[1]},
                "gamma": np.int16(3 * (2 * favoured - 1)),
                "stereoclick_time_s": 100.25 + 7.3 * i,
                "ntimesteps": np.uint8(steps),
                "photostimulus_incline_on_s": np.nan,
                "baseline_hz": 20 * rate[:, None] + rng.uniform(size=(5, 1)),
                "spiketrains": cells([rng.poisson(r, size=(1, steps)).astype(np.uint8) for r in rate]),
            }
        )
    neurons = [{"brainarea": ("mPFC", "dmFC")[k % 2], "neuronindex": k} for k in range(5)]
    savemat(path, {"trials": cells(trials), "neurons": cells(neurons)})
    return path
