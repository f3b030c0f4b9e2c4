"""scikit-learn's digits: 17 levels, labels, and the same split for both kinds."""

import torch
from sklearn.datasets import load_digits

from diffusion_pl.conditions import label
from diffusion_pl.data import Digits


def test_the_digits_have_17_levels_which_all_come_back() -> None:
    data = Digits(val_fraction=0.0)
    data.setup()
    assert (data.shape, data.conditions, data.units.levels) == ((1, 8, 8), {}, 17)
    x = data.splits[0].__getitems__(torch.arange(1797))["x"]
    assert torch.equal(x[:, 0].double(), torch.from_numpy(load_digits().images))
    encoded = data.units.encode(x)
    assert (encoded.min().item(), encoded.max().item()) == (-1, 1)
    assert torch.equal(data.decode(encoded), x)


def test_labels_are_the_digits_and_the_split_is_stratified() -> None:
    plain, labelled = Digits(), Digits(conditional=True)
    for data in (plain, labelled):
        data.setup()
    assert labelled.conditions == {"label": label(10, "0123456789")}
    whole = torch.from_numpy(load_digits().target).bincount()
    for k, share in ((0, 0.9), (1, 0.1)):
        indices = torch.arange(len(plain.splits[k]))
        batch = labelled.splits[k].__getitems__(indices)
        assert torch.equal(plain.splits[k].__getitems__(indices)["x"], batch["x"])
        assert (batch["label"].bincount() - share * whole).abs().max() <= 0.5
