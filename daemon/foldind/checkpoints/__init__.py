"""Checkpoints: their headers and plan, read without torch, and their tensors, read with it."""
