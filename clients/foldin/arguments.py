"""What callers name, as the contract has it."""

from foldin.errors import InvalidArgument
from foldin.models import SubmissionState
from foldin.vocabulary import VocabPolicy


def name_in_contract(state: str) -> str:
    """Return what the contract calls a state of a submission. Raises InvalidArgument."""
    try:
        return f"SUBMISSION_STATE_{SubmissionState(state.upper())}"
    except ValueError:
        raise InvalidArgument(f"{state!r} is no state: the states are {', '.join(SubmissionState)}.") from None


def vocab_policy(name: str) -> VocabPolicy:
    """Return a policy by its name. Raises InvalidArgument."""
    try:
        return VocabPolicy(name)
    except ValueError:
        raise InvalidArgument(f"{name!r} is no way to take a vocabulary: they are {', '.join(VocabPolicy)}.") from None


def version_number(version: int) -> int:
    """Return the number of a version. Raises InvalidArgument."""
    if version < 1:
        raise InvalidArgument(f"{version} is no version: versions are numbered from 1.")
    return version
