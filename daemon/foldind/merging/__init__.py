"""The merging algebra: pure functions on tensors. Start at opcm.py; registry.py lists every rule."""
