"""Which device a job of a sweep trains on."""

import torch

from connector.launch import devices_of_job


def test_jobs_side_by_side_take_turns_on_the_visible_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [devices_of_job("gpu", 1, number) for number in range(4)] == [[0], [1], [2], [0]]
    assert devices_of_job("auto", 1, 1) == [1]
    assert devices_of_job("gpu", 2, 1) == 2  # a job that asks for several gets these
    assert devices_of_job("cpu", 1, 1) == 1
    assert devices_of_job("gpu", 1, None) == 1  # no sweep
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert devices_of_job("gpu", 1, 1) == 1
