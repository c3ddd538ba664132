import pytest
from torch import Generator


@pytest.fixture
def generator(seed: int) -> Generator:
    return Generator().manual_seed(seed)
