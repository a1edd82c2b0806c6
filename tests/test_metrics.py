"""Scores against scikit-image and scikit-learn, then laws."""

import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import f1_score, jaccard_score

from kunet import metrics


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(2, 3, 24, 31, generator=generator)
    return (clean + 0.1 * torch.randn(clean.shape, generator=generator)).clamp(0, 1), clean


def test_psnr_is_scikit_images(pair):
    for ours, a, b in zip(metrics.psnr(*pair), *pair):
        assert float(ours) == pytest.approx(peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=1), abs=1e-4)


def test_psnr_of_known_errors():
    clean = torch.zeros(1, 3, 4, 4)
    assert float(metrics.psnr(clean + 0.1, clean)) == pytest.approx(20)
    assert float(metrics.psnr(clean, clean)) == float("inf")


def test_ssim(pair):
    for ours, a, b in zip(metrics.ssim(*pair), *pair):
        options = dict(channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0)
        assert float(ours) == pytest.approx(structural_similarity(a.numpy(), b.numpy(), **options), abs=1e-5)
    assert torch.allclose(metrics.ssim(pair[1], pair[1]), torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="at least 11 x 11"):
        metrics.ssim(torch.zeros(1, 3, 10, 20), torch.zeros(1, 3, 10, 20))


def test_log_mse_is_psnr_in_other_words(pair):
    decibels = -10 / torch.log(torch.tensor(10.0)) * metrics.log_mse(*pair)
    assert float(decibels) == pytest.approx(float(metrics.psnr(*pair).mean()), abs=1e-3)


def test_a_floor_evens_out_what_levels_pull():
    """The length of the gradient at the output: of ln(MSE) it is 1 / rms, floored rms / (rms^2 + c), at most at c."""
    clean = torch.full((1, 3, 32, 32), 0.5)
    error = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    error /= error.square().mean().sqrt()

    def pull(objective, rms):
        restored = (clean + rms * error).requires_grad_()
        return float(torch.autograd.grad(objective(restored, clean), restored)[0].norm())

    left = [0.006, 0.012, 0.018, 0.023, 0.038, 0.044]  # about what the released weights leave of sigma 1 to 75
    plain, floored = ([pull(f, rms) for rms in left] for f in (metrics.log_mse, metrics.floored_log_mse))
    assert plain[0] / plain[-1] == pytest.approx(left[-1] / left[0], rel=0.01)
    for rms, found, before in zip(left, floored, plain):
        assert found / before == pytest.approx(rms**2 / (rms**2 + 3e-4), rel=0.01)
    assert max(floored) < 2 * min(floored) and max(plain) > 7 * min(plain)
    assert pull(metrics.floored_log_mse, 1e-5) < 0.01 * max(floored)
    strong = clean + 0.3 * error
    assert float(metrics.floored_log_mse(strong, clean)) == pytest.approx(
        float(metrics.log_mse(strong, clean)), abs=0.01
    )


def test_shapes_must_agree(pair):
    with pytest.raises(ValueError, match="must both be"):
        metrics._check(pair[0][:, :, :5], pair[1])  # psnr and ssim begin with it


@pytest.fixture
def labels():
    """Predicted and true classes of three images; class 3 is in none of the last."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (3, 9, 14), generator=generator)
    predicted = torch.where(torch.rand(target.shape, generator=generator) < 0.7, target, (target + 1) % 4)
    predicted[2], target[2] = predicted[2].clamp(max=2), target[2].clamp(max=2)
    return predicted, target


@pytest.mark.parametrize("ours,theirs", [(metrics.dice, f1_score), (metrics.iou, jaccard_score)])
def test_overlaps_are_scikit_learns(labels, ours, theirs):
    for scores, a, b in zip(ours(*labels, 4), *labels):
        wanted = theirs(b.flatten(), a.flatten(), labels=range(4), average=None, zero_division=1)
        assert scores.tolist() == pytest.approx(wanted.tolist())


def test_overlap_laws(labels):
    predicted, target = labels
    dice, iou = metrics.dice(predicted, target, 4), metrics.iou(predicted, target, 4)
    assert torch.allclose(dice, 2 * iou / (1 + iou))
    assert torch.equal(dice, metrics.dice(target, predicted, 4))
    assert bool((metrics.iou(target, target, 4) == 1).all())
    assert dice[2, 3] == iou[2, 3] == 1 and bool((dice[:2] < 1).all())  # class 3 is rightly found nowhere
    empty, full = torch.zeros(1, 4, 4, dtype=torch.long), torch.ones(1, 4, 4, dtype=torch.long)
    assert metrics.dice(full, empty, 2).tolist() == metrics.iou(full, empty, 2).tolist() == [[0, 0]]


def test_dice_loss_of_certain_answers_is_dice_over_the_batch(labels):
    predicted, target = labels
    certain = F.one_hot(predicted, 4).movedim(-1, 1).float()
    wanted = f1_score(target.flatten(), predicted.flatten(), average="macro")
    assert float(metrics.dice_loss(certain, target)) == pytest.approx(1 - wanted)
    assert float(metrics.dice_loss(F.one_hot(target, 4).movedim(-1, 1).float(), target)) == pytest.approx(0, abs=1e-6)


def test_dice_loss_leaves_absent_classes_out():
    target = torch.tensor([[[0, 0, 1, 1]]])
    p = torch.tensor([0.6, 0.3, 0.1])[None, :, None, None].expand(1, 3, 1, 4)
    wanted = (2 * 1.2 / (2.4 + 2) + 2 * 0.6 / (1.2 + 2)) / 2  # of classes 0 and 1; 2 is in no pixel
    assert float(metrics.dice_loss(p, target)) == pytest.approx(1 - wanted)
