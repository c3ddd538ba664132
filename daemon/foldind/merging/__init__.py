"""The merging algebra: pure functions on tensors. Start at opcm.py."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from foldind.merging.opcm import opcm
from foldind.merging.rule import Rule

RULES: Mapping[str, Callable[..., Rule]] = MappingProxyType({"opcm": opcm})
"""Name of a merge rule -> its factory, which takes the rule's hyper-parameters by keyword."""
