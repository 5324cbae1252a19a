"""Which pixels a step looks at: only labelled ones, each once, with the probabilities that the sampler names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("mmseg")
from mmengine.registry import MODELS
from scipy import stats

from gbseg.pixelnet.sampling import BalancedPixelSampler, PixelSampler, UniformPixelSampler

SAMPLERS = pytest.mark.parametrize("sampler_type", [UniformPixelSampler, BalancedPixelSampler])
# chance of a false alarm with a wrong seed; the seeds are fixed
SIGNIFICANCE = 1e-4


def _labels(counts: dict[int, int], shape: tuple[int, int] = (6, 7)) -> Tensor:
    """A shuffled label map (H, W) with so many pixels of each label, 255 elsewhere."""
    flat = np.full(shape[0] * shape[1], 255)
    flat[: sum(counts.values())] = np.repeat(list(counts), list(counts.values()))
    return torch.from_numpy(np.random.default_rng(0).permutation(flat).reshape(shape))


def _flat(points: Tensor, width: int) -> Tensor:
    return points[..., 0] * width + points[..., 1]


@SAMPLERS
def test_labelled_pixels_without_replacement(sampler_type: type[PixelSampler]) -> None:
    """No pixel twice, none that is not labelled, and each with its own label."""
    torch.manual_seed(0)
    label = torch.stack([_labels({0: 20, 3: 5, 4: 1}), _labels({2: 15}), _labels({1: 42})])
    points, drawn = sampler_type(15)(label, 5, 255)
    assert points.shape == (3, 15, 2)
    assert points.dtype == torch.int64
    for image in range(3):
        expected = [label[image, row, column].item() for row, column in points[image].tolist()]
        assert drawn[image].tolist() == expected
        assert 255 not in expected
        assert len(_flat(points[image], 7).unique()) == 15


def test_uniform_over_the_labelled_pixels() -> None:
    """Chi-square: the first draw is multinomial over the labelled pixels, and all draws reach each equally often."""
    torch.manual_seed(0)
    label, images, num, available = _labels({0: 2, 1: 18}), 6000, 5, 20
    points, _ = UniformPixelSampler(num)(label.expand(images, -1, -1), 2, 255)
    flat = _flat(points, 7)
    labelled = (label.flatten() != 255).numpy()
    first = np.bincount(flat[:, 0].numpy(), minlength=42)[labelled]
    assert first.sum() == images
    assert stats.chisquare(first).pvalue > SIGNIFICANCE
    # without replacement the counts vary less than a multinomial's: scale to the variance of a hypergeometric draw
    every = np.bincount(flat.flatten().numpy(), minlength=42)[labelled]
    statistic = stats.chisquare(every).statistic * (available - 1) / (available - num)
    assert SIGNIFICANCE < stats.chi2.cdf(statistic, available - 1) < 1 - SIGNIFICANCE


def test_balanced_over_the_classes_present() -> None:
    """The class of the first pixel is uniform over the classes that an image shows, its pixels uniform within a class."""
    torch.manual_seed(0)
    counts = {0: 30, 2: 6, 3: 1}
    label, images = _labels(counts), 6000
    points, drawn = BalancedPixelSampler(3)(label.expand(images, -1, -1), 5, 255)
    classes = np.bincount(drawn[:, 0].numpy(), minlength=5)
    assert classes[[1, 4]].sum() == 0
    assert stats.chisquare(classes[[0, 2, 3]]).pvalue > SIGNIFICANCE
    first = np.bincount(_flat(points, 7)[:, 0].numpy(), minlength=42)
    for number in (0, 2):
        assert stats.chisquare(first[(label.flatten() == number).numpy()]).pvalue > SIGNIFICANCE


@SAMPLERS
@pytest.mark.parametrize(("available", "num"), [(3, 10), (1, 7), (9, 10), (5, 10), (42, 100)])
def test_too_few_pixels_are_repeated_in_turn(sampler_type: type[PixelSampler], available: int, num: int) -> None:
    """Each labelled pixel floor(P/n) or ceil(P/n) times, also where the whole image has fewer than P pixels."""
    torch.manual_seed(0)
    label = _labels({1: available})
    points, drawn = sampler_type(num)(label.unsqueeze(0), 3, 255)
    pixels, times = _flat(points[0], 7).unique(return_counts=True)
    assert points.shape == (1, num, 2)
    assert len(pixels) == available
    assert set(times.tolist()) <= {num // available, -(-num // available)}
    assert (drawn == 1).all()


@SAMPLERS
@pytest.mark.parametrize("num", [5, 100])
@pytest.mark.parametrize("ignore_index", [255, -1, 0])
def test_an_image_without_labels(sampler_type: type[PixelSampler], num: int, ignore_index: int) -> None:
    """Its points are pixels whose label is the ignored index; the other image of the batch is untouched by it."""
    label = torch.full((2, 4, 6), ignore_index)
    label[1] = 1
    points, drawn = sampler_type(num)(label, 2, ignore_index)
    assert (drawn[0] == ignore_index).all()
    assert (drawn[1] == 1).all()
    assert ((points >= 0) & (points < torch.tensor([4, 6]))).all()


@SAMPLERS
@pytest.mark.parametrize("bad", [21, 254, -3, 1000])
def test_labels_that_are_no_class_are_drawn_first(sampler_type: type[PixelSampler], bad: int) -> None:
    """Two bad pixels among thousands reach the loss, which refuses them."""
    label = torch.zeros(1, 80, 80, dtype=torch.long)
    label[0, 17, 4] = label[0, 60, 79] = bad
    points, drawn = sampler_type(3)(label, 21, 255)
    assert drawn[0].tolist() == [bad, bad, 0]
    assert {tuple(point) for point in points[0, :2].tolist()} == {(17, 4), (60, 79)}


@SAMPLERS
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_the_seed_decides(sampler_type: type[PixelSampler], dtype: torch.dtype) -> None:
    """Same `torch.manual_seed`, same pixels, whatever integers the labels are; another seed, others."""
    label = torch.arange(48, dtype=dtype).reshape(1, 6, 8) % 3

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return sampler_type(20)(label, 3, 255).points

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


@SAMPLERS
def test_nothing_is_read_by_the_host(sampler_type: type[PixelSampler]) -> None:
    """On the meta device, which has no data, `.item()`, `.tolist()`, `nonzero`, a copy and `if tensor` raise."""
    label = torch.empty(2, 8, 9, dtype=torch.long, device="meta")
    points, drawn = sampler_type(100)(label, 5, 255)
    assert points.shape == (2, 100, 2)
    assert drawn.shape == (2, 100)


@SAMPLERS
@pytest.mark.parametrize("num", [0, -1])
def test_num_must_be_positive(sampler_type: type[PixelSampler], num: int) -> None:
    """The message names the sampler and what came."""
    with pytest.raises(ValueError, match=rf"{sampler_type.__name__}.*got {num}"):
        MODELS.build({"type": sampler_type.__name__, "num": num})


@pytest.mark.parametrize("shape", [(4, 4), (2, 1, 4, 4), (2, 0, 4), (0, 3, 3)])
def test_labels_of_another_shape(shape: tuple[int, ...]) -> None:
    """The message names the shape."""
    with pytest.raises(ValueError, match=r"\(N, H, W\)"):
        UniformPixelSampler()(torch.zeros(shape, dtype=torch.long), 2)
