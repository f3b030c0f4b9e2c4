"""What an autoencoder alone loses: the floor of the metrics of a model of its latents."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure as ssim
from tqdm.auto import tqdm

from ..data import DataModule
from ..metrics.frechet import frechet_distance
from .features import Features, reference_rows
from .plan import Plan
from .results import SampleResult

_BATCH = 64


def floor(
    data: DataModule, features: Features, plan: Plan, results: Mapping[str, SampleResult], model: Mapping[str, Any]
) -> dict[str, SampleResult]:
    """rfid, psnr (dB) and ssim of the reconstructions of the first images of the split, as many as there are samples.

    Reference: Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004.

    Args:
        data: latents, and the images that they were made of; set up.
        features: of the samples.
        plan: of the evaluation.
        results: of the samples; rfid is measured where fid is, by its protocol.
        model: for the record.
    """
    n = min(plan.num_samples, len(data.part(plan.split)))
    rows, psnrs, ssims = [], [], []
    pairs = zip(data.batches(plan.split, _BATCH), data.originals.batches(plan.split, _BATCH), strict=True)
    blocks = tqdm(islice(pairs, -(-n // _BATCH)), "reconstructions", -(-n // _BATCH), delay=2, dynamic_ncols=True)
    for latents, images in blocks:
        if "fid" in results:
            rows.append(features(latents["x"]).cpu())
        made, real = data.units.to_uint8(latents["x"]).double(), data.originals.units.to_uint8(images["x"]).double()
        psnrs.append(10 * torch.log10(255**2 / (made - real).square().flatten(1).mean(1).clamp(min=1e-6)))
        similarity = ssim(made, real, data_range=255.0, reduction="none")
        assert isinstance(similarity, Tensor)  # without the full image
        ssims.append(similarity)
    first = next(iter(results.values()))
    protocol = {"num_samples": n, "reference": first.protocol["reference"]}
    values = {"psnr": torch.cat(psnrs), "ssim": torch.cat(ssims)}
    shown = {
        name: SampleResult.of([float(each[:n].mean())], unit="", protocol=protocol, model=dict(model))
        for name, each in values.items()
    }
    if "fid" not in results:
        return shown
    real_rows = reference_rows(features, data.originals, protocol["reference"])
    made_moments, real_moments = (
        features.statistics(part, keep=False).compute() for part in (torch.cat(rows)[:n].numpy(), real_rows)
    )
    like = {**results["fid"].protocol, "num_samples": n}
    value = frechet_distance(made_moments, real_moments)
    return {"rfid": SampleResult.of([value], unit="", protocol=like, model=dict(model)), **shown}
