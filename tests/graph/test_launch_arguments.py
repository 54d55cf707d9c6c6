"""Arguments of a launch file are checked before any node starts, in one line each, as those of `rsd eval` are."""

from __future__ import annotations

import pytest

from rsd_policy.errors import ArgumentError
from rsd_policy.graph.bringup import EVAL_ARGUMENTS, launched_eval

DEFAULTS = {argument.name: argument.default for argument in EVAL_ARGUMENTS}


def parameters(**changes):
    """Parameters of eval_node."""
    return launched_eval(DEFAULTS | changes)[-1].parameters


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_trials": "0"}, "number of trials: expected 1 to 50"),
        ({"num_trials": "51"}, "got 51"),
        ({"num_trials": "many"}, "num_trials: expected a whole number, got 'many'"),
        ({"trials": "50"}, "canonical initial states 0-49; got 50"),
        ({"tasks": "0-10"}, "libero_spatial has tasks 0-9; got 10"),
        ({"seed": "-1"}, "seed: expected 0 to 4294967295, got -1"),
        ({"mode": "gated", "alpha": "2"}, "alpha"),
        ({"alpha": "0.1"}, "alpha 0.1 is the promise of mode 'gated'"),
        ({"use_speculative_decoding": "maybe"}, "use_speculative_decoding: expected true or false, got 'maybe'"),
        ({"policy": "expert", "clock": "realtime"}, "policy 'expert' needs"),
    ],
)
def test_an_argument_out_of_range_is_refused(changes, text):
    """They reached the nodes, whose tracebacks did not say which argument was meant."""
    with pytest.raises(ArgumentError) as refused:
        launched_eval(DEFAULTS | changes)
    assert text in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(("value", "mode"), [("True", "speculative"), ("false", "baseline"), ("False", "baseline")])
def test_true_may_be_written_as_python_writes_it(value, mode):
    """use_speculative_decoding:=True was refused."""
    assert parameters(use_speculative_decoding=value)["mode"] == mode


def test_the_number_of_trials_and_a_range_of_them_mean_the_same_to_the_node():
    assert parameters(num_trials="3")["trials"] == parameters(trials="0-2")["trials"] == "0-2"
    assert parameters(task_suite="libero_spatial")["alpha"] == 0.0
