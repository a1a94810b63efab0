"""What several test files share: a few random images, photos, a small network as a user might bring it, its state."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from eva_utils import Images
from eva_utils.augment import normalize


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
def noise():
    """Makes random images in three classes: every pixel and channel differs from its neighbours."""

    def make(n: int, height: int = 16, width: int = 16, seed: int = 0) -> Images:
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(256, (n, height, width, 3), generator=generator, dtype=torch.uint8)
        labels = torch.randint(3, (n,), generator=generator)
        return Images(pixels, labels, ("ant", "bee", "cat"), (0.5, 0.4, 0.6), (0.25, 0.3, 0.2), "tiny")

    return make


@pytest.fixture
def tiny(noise):
    """(train, test): 32 and 12 random images of 16 x 16 in three classes."""
    return noise(32, seed=1), noise(12, seed=2)


@pytest.fixture
def batches():
    """Makes a user's ``DataLoader`` of ``Images``."""

    def make(images: Images, batch_size: int = 8, **options) -> DataLoader:
        pairs = TensorDataset(normalize(images.pixels, images.mean, images.std), images.labels)
        return DataLoader(pairs, batch_size, **options)

    return make


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A folder of photos of ten sizes, in three classes, not split; not to be changed."""
    folder, noise = tmp_path_factory.mktemp("data") / "photos", np.random.default_rng(0)
    for i, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir(parents=True)
        for k in range(10):
            pixels = noise.integers(0, 150, (20, 24 + k, 3), np.uint8)
            pixels[..., 2 - i] += 100
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
    return folder


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


@pytest.fixture
def state():
    """Tells of a network, and of what torch and the random numbers are set to, all that a call has to leave alone."""

    def tell(model: nn.Module) -> dict:
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return {
            "weights": {key: value.cpu().numpy().tobytes() for key, value in model.state_dict().items()},
            "parameters": [(p.requires_grad, p.grad, p.stride()) for p in model.parameters()],
            "modes": [module.training for module in model.modules()],
            "hooks": [len(getattr(module, name)) for module in model.modules() for name in hooks],
            "torch": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
            "torch's": [torch.get_rng_state().tolist(), *(s.tolist() for s in torch.cuda.get_rng_state_all())],
            "NumPy's": str(np.random.get_state(legacy=False)),
            "Python's": random.getstate(),
        }

    return tell
