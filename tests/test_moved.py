"""What the documentation of the first release let users import is still found there."""

from importlib import import_module

import pytest

import connector
from connector.moved import HOMES


@pytest.mark.parametrize("old", HOMES)
def test_a_module_that_moved_is_found_under_its_old_name_with_a_warning(old):
    import sys

    sys.modules.pop(old, None)
    with pytest.warns(FutureWarning, match="is now connector."):
        module = import_module(old)
    names = {"clusters": "cell_type_test", "diagnosis": "Diagnosis", "flow": "Flow", "measures": "field_error"}
    names |= {"store": "load_run", "tilt": "DriveTilt", "recordings": "load_rat"}
    assert getattr(module, names[old.split(".")[-1]]) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_packages_give_the_class_that_their_module_of_that_name_held():
    from connector.connectivity import ConnectivityDistribution
    from connector.lrrnn import LowRankRNN

    assert ConnectivityDistribution is connector.ConnectivityDistribution
    assert LowRankRNN is connector.LowRankRNN
