"""How much disk space a merge takes."""

import math

from foldind.checkpoints.header import ITEM_BYTES
from foldind.checkpoints.plan import Plan, Treatment
from foldind.config import MergeSettings, ServeSettings
from foldind.merging.catalog import SPECTRAL, parse_publication, slots_of
from foldind.state.bases import basis_bytes


def merge_bytes(plan: Plan, merge: MergeSettings, settings: ServeSettings) -> int:
    """Return what a merge writes, at the most: the accumulated state, bases if it publishes by them, and snapshots."""
    bases = 0
    if parse_publication(settings.publication, merge.rule).name in SPECTRAL:
        for tensor in plan.folded:
            if tensor.treatment is Treatment.PROJECTED:
                (*stacked, m, n) = tensor.shape
                bases += math.prod(stacked) * basis_bytes(m, n)
    return state_bytes(plan, merge.rule) + bases + plan.published_bytes(settings.publish, settings.adapter_rank)


def state_bytes(plan: Plan, rule: str) -> int:
    """Return what the accumulated state takes, at the most."""
    return sum(
        ITEM_BYTES[slot.dtype] * math.prod(slot.shape)
        for tensor in plan.folded
        for slot in slots_of(rule, tensor.shape, matrix=tensor.treatment is Treatment.PROJECTED).values()
    )
