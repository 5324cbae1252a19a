"""`import gbseg` with torch alone, and the registration where mmengine is there."""

import subprocess
import sys

import pytest
import torch

import gbseg

WITHOUT_MM = """
import importlib.util
import sys

BLOCKED = {"mmengine", "mmcv", "mmseg", "mmpretrain", "mmdet"}

class Finders:
    # in place of the real ones and not before them: a finder that raises would make find_spec raise too
    def __init__(self, finders):
        self.finders = finders

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            return None
        return next((spec for finder in self.finders if (spec := finder.find_spec(name, path, target))), None)

sys.meta_path[:] = [Finders(list(sys.meta_path))]
assert importlib.util.find_spec("mmengine") is None
try:
    import mmengine
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("mmengine is not blocked")

import torch
import gbseg

try:
    from gbseg import Segmenter
except ImportError as error:
    assert "pip install 'gbseg[mm]'" in str(error), error
else:
    raise AssertionError("the MM packages are blocked")

x = torch.zeros(2, 3, requires_grad=True)
loss = gbseg.ExpGBLoss()(x, torch.tensor([0, 2]))
loss.backward()
assert x.grad.abs().sum() > 0
loaded = sorted({name.split(".")[0] for name in sys.modules} & (BLOCKED | {"cv2", "albumentations", "torchvision"}))
print(loss.item(), loaded)
"""


def test_without_mm() -> None:
    """With torch alone the losses work, and nothing of the MM stack (or what it brings) is loaded."""
    run = subprocess.run([sys.executable, "-c", WITHOUT_MM], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    value, loaded = run.stdout.split(maxsplit=1)
    expected = gbseg.ExpGBLoss()(torch.zeros(2, 3), torch.tensor([0, 2])).item()
    assert float(value) == pytest.approx(expected) and loaded.strip() == "[]"


@pytest.mark.parametrize("scope", ["mmengine", "mmseg", "mmpretrain"])
@pytest.mark.parametrize("name", ["BoostedLoss", "ExpGBLoss", "Pow3GBLoss", "LinearLoss"])
def test_registry(scope: str, name: str) -> None:
    """The losses are in mmengine's root, so that the registries of every scope find them."""
    registry = pytest.importorskip(f"{scope}.registry").MODELS
    config: dict[str, object] = dict(type=name, targets=(1.0, 2.0), loss_name="loss_x")
    if name == "BoostedLoss":
        config["boost"] = dict(type="CubicBoost", alpha=0.5, beta=-0.3)
    built = registry.build(config)
    assert type(built) is getattr(gbseg, name)
    assert (built.targets, built.loss_name) == ((1.0, 2.0), "loss_x")


def test_custom_imports() -> None:
    """A foreign config needs one line."""
    config = pytest.importorskip("mmengine.config").Config
    text = "custom_imports = dict(imports=['gbseg'])\nloss_decode = dict(type='ExpGBLoss', alpha=0.2)"
    built = pytest.importorskip("mmengine.registry").MODELS.build(config.fromstring(text, ".py").loss_decode)
    assert built.boost.alpha == 0.2


@pytest.mark.parametrize(
    "first",
    [
        "import gbseg, mmengine.registry",
        "import mmengine.registry, gbseg",
        "import mmengine, gbseg",
        "from gbseg.losses import ExpGBLoss; import mmengine.registry",
        "import gbseg, mmseg.models, mmpretrain.models",
    ],
)
def test_the_order_of_imports(first: str) -> None:
    """Whoever is imported first, the registry holds the losses, once, and is the only one of its kind."""
    script = (
        f"{first}\nimport sys, mmengine.registry, mmengine, gbseg\n"
        "assert mmengine.registry.MODELS.get('ExpGBLoss') is gbseg.ExpGBLoss\n"
        "assert mmengine.registry.MODELS is sys.modules['mmengine.registry.root'].MODELS\n"
        "assert mmengine.registry.__spec__.loader.get_source('mmengine.registry')\n"
    )
    run = subprocess.run([sys.executable, "-Wignore", "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr


def test_preparing_data_needs_no_torch() -> None:
    """A process that converts masks is not given torch's half gigabyte."""
    script = (
        "import sys, gbseg, gbseg.cli, gbseg.cli.prepare_voc, gbseg.data.prepare.voc, gbseg.data.prepare.verify\n"
        "loaded = {'torch', 'mmengine', 'cv2'} & set(sys.modules)\nassert not loaded, loaded\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
