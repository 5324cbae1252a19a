"""The networks layer by layer: shapes and parameter counts by hand, torchvision's AlexNet, and the head's scores."""

from __future__ import annotations

import pytest
import torch
import torchvision
from mmengine.registry import MODELS
from torch import nn

import gbseg
from gbseg.mm.models import MLP, AlexNetBN, AllConvNet, GBClsHead, SmallConvNet


def _weights(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(layer.weight.shape) for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def test_mlp() -> None:
    """784-392-50, ReLU behind both."""
    network = MLP()
    assert _weights(network) == [(392, 784), (50, 392)]
    x = torch.rand(3, 1, 28, 28)
    first, second = (layer for layer in network.modules() if isinstance(layer, nn.Linear))
    expected = second(first(x.view(3, 784)).clamp(min=0)).clamp(min=0)
    torch.testing.assert_close(network(x)[0], expected)


def test_convolutional_networks() -> None:
    """Every convolution is normalised; the features fit the head; strides as All-CNN-C has them."""
    small, deep = SmallConvNet(), AllConvNet()
    widths = [96, 96, 96, 192, 192, 192, 192, 192, 10]
    kernels = [3] * 7 + [1, 1]
    assert _weights(small) == [(32, 3, 3, 3), (64, 32, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3)]
    assert _weights(deep) == [(w, v, k, k) for w, v, k in zip(widths, [3, *widths], kernels, strict=False)]
    assert [layer.stride[0] for layer in deep.modules() if isinstance(layer, nn.Conv2d)] == [1, 1, 2, 1, 1, 2, 1, 1, 1]
    for network, count in ((small, 4), (deep, 9)):
        (features,) = network(torch.rand(2, 3, 32, 32))
        assert features.shape == (2, network.out_channels)
        assert sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()) == count
    assert deep.out_channels == 640 and small.out_channels == 512
    quarter = AllConvNet(width=0.25)
    assert _weights(quarter)[0] == (24, 3, 3, 3) and _weights(quarter)[-1] == (10, 48, 1, 1)


def test_alexnet_has_the_layers_of_torchvision() -> None:
    """torchvision's AlexNet without its last layer, and a normalisation behind each."""
    assert _weights(AlexNetBN()) == _weights(torchvision.models.alexnet())[:-1]
    network = AlexNetBN().eval()
    assert network(torch.rand(1, 3, 224, 224))[0].shape == (1, 4096)
    assert sum(isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d) for layer in network.modules()) == 7


def test_initial_weights() -> None:
    """He's deviation, sqrt(2 / fan in)."""
    torch.manual_seed(0)
    network = MLP()
    network.init_weights()
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Linear))
    assert first.weight.std().item() == pytest.approx((2 / 784) ** 0.5, rel=0.02)
    assert not first.bias.any()


@pytest.mark.parametrize("scope", ["mmengine", "mmpretrain"])
@pytest.mark.parametrize("name", ["MLP", "SmallConvNet", "AllConvNet", "AlexNetBN"])
def test_registry(name: str, scope: str) -> None:
    """MMPretrain's configs find them."""
    with MODELS.switch_scope_and_registry(scope) as registry:
        assert type(registry.build(dict(type=name))).__name__ == name


def _head(**options: object) -> GBClsHead:
    torch.manual_seed(0)
    head = GBClsHead(5, 3, **{"loss": dict(type="Pow3GBLoss", alpha=0.01), **options})
    head.init_weights()
    return head


def test_scores_go_through_the_link() -> None:
    """Of pow3-GB they are no softmax; the label is the argmax of the logits."""
    head = _head()
    features = 5 * torch.randn(6, 3)
    logits = head.fc(features)
    samples = head.predict((features,), torch.arange(5).repeat(2)[:6])
    share = (0.01 * logits.double() ** 3 + 0.4).clamp(min=0)
    expected = share / share.sum(1, keepdim=True)
    for sample, score, row, label in zip(samples, expected, logits, torch.arange(5).repeat(2)[:6], strict=True):
        torch.testing.assert_close(sample.pred_score, score.float(), rtol=1e-4, atol=1e-6)
        assert sample.pred_label.item() == row.argmax() and sample.gt_label.item() == label
    assert not torch.allclose(samples[0].pred_score, logits[0].softmax(0), atol=0.05)
    assert head.predict((features,))[0].pred_label.item() == logits[0].argmax()


def test_loss_of_labels_and_of_samples() -> None:
    """A tensor of labels is the same as MMPretrain's samples, and is what the loss gives by itself."""
    head = _head(cal_acc=True, topk=(1, 2))
    features, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 4, 0])
    losses = head.loss((features,), labels)
    torch.testing.assert_close(losses["loss"], gbseg.Pow3GBLoss(alpha=0.01)(head.fc(features), labels))
    samples = head.predict((features,), labels)
    again = head.loss((features,), samples)
    torch.testing.assert_close(again["loss"], losses["loss"])
    right = (head.fc(features).argmax(1) == labels).double().mean().item()
    assert losses["accuracy_top-1"][0].item() == pytest.approx(100 * right)


def test_start() -> None:
    """At the prior, the scores of features 0 are the frequencies."""
    frequencies = [0.1, 0.2, 0.3, 0.15, 0.25]
    head = _head(init_bias=frequencies, init_std=0.001)
    (sample,) = head.predict((torch.zeros(1, 3),))
    torch.testing.assert_close(sample.pred_score, torch.tensor(frequencies), rtol=1e-3, atol=1e-4)
    assert head.fc.weight.std().item() == pytest.approx(0.001, rel=0.5)
    with pytest.raises(ValueError, match="GBClsHead: init_bias has 1 frequencies for 5 classes"):
        _head(init_bias=[1.0])
    with pytest.raises(ValueError, match="SigmoidBCELoss has none"):
        _head(init_bias="prior", loss=dict(type="SigmoidBCELoss"))


def test_normalised_logits() -> None:
    """With batch_norm the logits of a batch have the start's bias as mean and deviation 1; there is no second bias.

    They are what ``head.fc`` returns, which GradientStatsHook watches.
    """
    frequencies = [0.1, 0.2, 0.3, 0.15, 0.25]
    head = _head(batch_norm=True, init_bias=frequencies)
    assert sorted(name for name, _ in head.named_parameters()) == ["fc.0.weight", "fc.1.bias", "fc.1.weight"]
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(2)) * 4 + 3
    logits = head((features,))
    torch.testing.assert_close(head.fc(features), logits)
    raw = (features.double() @ head.fc[0].weight.double().T).detach()
    expected = (raw - raw.mean(0)) / raw.std(0, correction=0) + head.loss_module.prior_logits(
        torch.tensor(frequencies)
    ).double()
    torch.testing.assert_close(logits.double(), expected, rtol=1e-3, atol=1e-3)
    head.eval()
    (sample,) = head.predict((features[:1],))
    assert sample.pred_label.item() == head((features[:1],)).argmax()
