"""What several test files share: a few random images, and a small network as a user might bring it."""

import pytest
import torch
from torch import nn

from eva_utils import Images


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The networks here are so small that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeded():
    """Networks whose first weights a test leaves to chance are the same in every run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", params=["cpu", *["cuda"] * torch.cuda.is_available()])
def device(request) -> str:
    """A test that takes it runs on the CPU, and on the GPU where there is one."""
    torch.backends.cudnn.deterministic = True  # two trainings are compared, so a GPU shall sum in one order
    return request.param


@pytest.fixture
def tiny():
    """(train, test): 32 and 12 random images of 16 x 16 in three classes."""

    def make(n: int, seed: int) -> Images:
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(256, (n, 16, 16, 3), generator=generator, dtype=torch.uint8)
        labels = torch.randint(3, (n,), generator=generator)
        return Images(pixels, labels, ("ant", "bee", "cat"), (0.5, 0.4, 0.6), (0.25, 0.3, 0.2), "tiny")

    return make(32, 1), make(12, 2)


@pytest.fixture
def cnn():
    """Makes a user's own network, with BatchNorm and Dropout; the seed decides its first weights."""

    def make(seed: int = 0, outputs: int = 3) -> nn.Module:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(3, 4, 3),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Dropout(0.3),
                nn.Linear(4, outputs),
            )

    return make
