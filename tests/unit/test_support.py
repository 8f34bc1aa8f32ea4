"""What the tests spare changes nothing."""

import torch
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric


def test_a_number_that_is_logged_moves_to_another_device_alone():
    metric = _ResultMetric(_Metadata("training_step", "loss"), is_tensor=True)
    value = metric.value
    assert metric.to(torch.device("cpu")) is metric and metric.value is value
    assert metric.to(torch.device("meta")).value.device.type == "meta"
    other = _ResultMetric(_Metadata("training_step", "own"), is_tensor=False)
    assert other.to(torch.device("cpu")) is other
