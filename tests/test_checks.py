"""The doctor's checks, one by one: numbers against closed forms and integration, each way that each can end."""

import http.server
import math
import re
import shutil
import socket
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor, nn

from diffusion_pl import checks
from diffusion_pl.checks import CHECKS, Finding, prior_mismatch
from diffusion_pl.denoisers import LogSNR, NoiseInput, ScaledTime
from diffusion_pl.losses import GridTimes, LogNormalTimes, TimeSampler, UniformTimes
from diffusion_pl.networks import MLP, Blind, Embedding, Fourier, Identity, Sinusoidal
from diffusion_pl.schedules import VE, VP, LinearBetas, Rectified, Schedule

TABLE = LinearBetas(50, 1e-4, 0.05)  # a tutorial's, which ends with ᾱ = 0.28
CPU = torch.device("cpu")

#: α_T, σ_T and the standard deviation of the noise that sampling starts from, each from its own formula.
ENDS = [
    pytest.param(VP(), math.exp(-5.025), math.sqrt(1 - math.exp(-10.05)), 1.0, id="VP"),
    pytest.param(VP(0.1, 3.0), math.exp(-0.775), math.sqrt(1 - math.exp(-1.55)), 1.0, id="short VP"),
    pytest.param(VE(0.01, 50.0), 1.0, 50.0, math.sqrt(2501), id="VE"),
    pytest.param(VE(0.01, 2.0), 1.0, 2.0, math.sqrt(5), id="short VE"),
    pytest.param(TABLE, float(np.prod(1 - np.linspace(1e-4, 0.05, 50))) ** 0.5, None, 1.0, id="table"),
]


def only(findings: Any) -> Finding:
    (finding,) = findings
    assert finding.name in CHECKS
    assert bool(finding.fix) <= (finding.level != "fine")
    return finding  # type: ignore[no-any-return]


# prior


def integrated(alpha: float, sigma: float, prior: float, points: Sequence[float]) -> float:
    """∫ q(x_T | x_0) log q(x_T | x_0)/p(x_T) dx_T, mean over the x_0."""

    def kl(x_0: float) -> float:
        q, p = norm(alpha * x_0, sigma), norm(0, prior)
        low, high = alpha * x_0 - 12 * sigma, alpha * x_0 + 12 * sigma
        return float(quad(lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), low, high, limit=200, epsabs=1e-12)[0])

    return float(np.mean([kl(x_0) for x_0 in points]))


@pytest.mark.parametrize(("schedule", "alpha", "sigma", "prior"), ENDS)
@pytest.mark.parametrize("points", [[-1.0, 1.0], [0.0, 0.3, -2.5]], ids=["unit variance", "other"])
def test_the_mismatch_is_the_integral(
    schedule: Schedule, alpha: float, sigma: float | None, prior: float, points: list[float]
) -> None:
    sigma = math.sqrt(1 - alpha**2) if sigma is None else sigma
    second_moment = float(np.mean(np.square(points)))
    kl, snr = prior_mismatch(schedule, second_moment)
    assert kl == pytest.approx(integrated(alpha, sigma, prior, points), rel=1e-5, abs=1e-9)
    assert snr == pytest.approx(alpha**2 * second_moment / sigma**2, rel=1e-6)


def test_the_tutorials_table_keeps_28_percent() -> None:
    kl, snr = prior_mismatch(TABLE, 1.0)
    assert snr == pytest.approx(0.28 / 0.72, rel=0.02)
    assert kl == pytest.approx(-0.5 * math.log(0.72), rel=0.02)


@pytest.mark.parametrize("t", [0.3, 0.8])
def test_it_is_taken_where_sampling_starts(t: float) -> None:
    alpha = math.exp(-0.25 * t**2 * 19.9 - 0.05 * t)
    expected = integrated(alpha, math.sqrt(1 - alpha**2), 1.0, [1.0, -1.0])
    assert prior_mismatch(VP(), 1.0, t)[0] == pytest.approx(expected, rel=1e-6)


def test_a_mismatch_of_nan_is_refused() -> None:
    assert only(checks.prior(VP(), math.nan, 1.0, "DDIM", 1e-3)).level == "error"


# data


@pytest.mark.parametrize(
    ("x", "level", "message"),
    [
        ([[-1.0, 1.0], [0.5, -0.5]], "fine", r"2 training examples are in \[-1, 1\], root mean square 0.791"),
        ([[-1.0, 1.0], [0.5, math.nan]], "error", r"^1 of 2 training examples hold NaN or infinity"),
        ([[0.0, 255.0], [9.0, 90.0]], "error", r"are in \[0, 255\], the data declare \[-1, 1\]"),
        ([[-0.1, 0.1], [0.1, 0.1]], "warning", r"a root mean square of 0.1, the parameterization assumes 0.5"),
    ],
)
def test_data(x: list[list[float]], level: str, message: str) -> None:
    finding = only(checks.data(torch.tensor(x), (-1.0, 1.0), float(np.square(x).mean()), 0.5))
    assert finding.level == level
    assert re.search(message, finding.what), finding.what


# network and embedding


class Stretched(nn.Module):
    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return torch.cat((x, x, x), 1)


def passed(network: nn.Module, x: Tensor, c_noise: Tensor) -> checks.Probe:
    return checks.probe(network, partial(network, x, c_noise), c_noise)


def test_network_must_keep_the_shape() -> None:
    x, c = torch.ones(2, 2), torch.full((2,), 0.5)
    assert only(checks.network(passed(MLP((2,)), x, c), (2, 2))) == ("fine", "network", "2 examples of 2 pass", "")
    finding = only(checks.network(passed(Stretched(), x, c), (2, 2)))
    assert (finding.level, finding.what) == ("error", "the network makes (2, 6) where (2, 2) is needed")
    finding = only(checks.network(passed(MLP((2,)), x * math.inf, c), (2, 2)))
    assert (finding.level, finding.what) == ("error", "the untrained network's output is not finite")


def test_network_value_errors_are_findings_but_bugs_are_raised() -> None:
    x, c = torch.ones(2, 2), torch.full((2,), 0.5)

    def refuse() -> Tensor:
        raise ValueError("height must be even")

    assert only(checks.network(checks.probe(MLP((2,)), refuse, c), (2, 2))) == (
        "error",
        "network",
        "height must be even",
        "",
    )
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        passed(MLP((3,)), x, c)


def test_noise_and_point_embeddings_are_distinguished() -> None:
    network = MLP((1,), input_embedding=Fourier, time_embedding=Sinusoidal)
    seen = passed(network, torch.tensor([[0.1], [0.2]]), torch.tensor([0.5, 0.5]))
    assert seen.embedding is network.time_embedding
    assert not network.time_embedding._forward_hooks
    assert passed(Stretched(), torch.ones(2, 2), torch.ones(2)).embedding is None


def test_a_network_to_be_compiled_is_not_compiled_for_a_look() -> None:
    def refuse(graph: Any, inputs: Any) -> Any:
        raise AssertionError("compiled")

    network = MLP((2,))
    network.compile(backend=refuse)
    assert passed(network, torch.ones(2, 2), torch.ones(2)).output is not None


def sinusoidal_speed(features: int) -> float:
    """|de/dc|/|e| of the transformer's embedding where all phases are small or slow: constant, by sin² + cos² = 1."""
    rate = 10_000.0 ** -(np.arange(features // 2) / (features // 2 - 1))
    return float(np.sqrt(np.square(rate).sum() / (features // 2)))


@pytest.mark.parametrize("features", [32, 128, 256])
def test_unscaled_time_hardly_moves_the_transformers_embedding(features: int) -> None:
    """The VP-SDE seminar gives its U-Net t itself."""
    t = torch.linspace(1e-3, 1, 500, dtype=torch.float64)
    finding = only(checks.embedding(Sinusoidal(1, features), ScaledTime(), VP(), t, CPU))
    moved = float(finding.what.split(" by ")[1].split()[0])
    assert moved == pytest.approx(0.01 * 0.999 * sinusoidal_speed(features), rel=0.03)
    assert finding.level == "warning"
    assert re.search(r"noise_input StepIndex .*ScaledTime .*999", finding.fix)


def test_only_22_of_128_features_see_unscaled_time() -> None:
    """The source of the threshold: emb(0.5) and emb(0.49) are 0.02 apart, 6.46 if scaled."""
    embedding = Sinusoidal(1, 128)
    ends = embedding(torch.tensor([[0.0], [1.0]]))
    assert int(((ends[1] - ends[0]).abs() > 0.1).sum()) == 22
    near = embedding(torch.tensor([[0.5], [0.49], [499.5], [489.51]]))
    assert float((near[0] - near[1]).norm()) == pytest.approx(0.020, abs=5e-4)
    assert float((near[2] - near[3]).norm()) == pytest.approx(6.46, abs=0.3)


@pytest.mark.parametrize(
    ("embedding", "noise_input"),
    [
        (Sinusoidal(1, 128), ScaledTime(999)),
        (Sinusoidal(1, 32), ScaledTime(100, -1)),
        (Fourier(1, 32, 0.3), LogSNR()),
        (Identity(1), ScaledTime()),
        (Blind(1), ScaledTime()),
        (None, ScaledTime()),
    ],
    ids=lambda value: type(value).__name__ if " object at 0x" in repr(value) else str(value),
)
@pytest.mark.parametrize("schedule", [VP(), Rectified(), LinearBetas()], ids=lambda s: type(s).__name__)
def test_embeddings_that_see_the_noise_level_pass(
    embedding: Embedding | None, noise_input: NoiseInput, schedule: Schedule
) -> None:
    t = checks.draw_times(UniformTimes(), schedule)
    assert only(checks.embedding(embedding, noise_input, schedule, t, CPU)).level == "fine"


def test_a_slow_fourier_embedding_needs_a_larger_scale() -> None:
    t = checks.draw_times(UniformTimes(), VP())
    assert only(checks.embedding(Fourier(1, 32, 0.01), ScaledTime(), VP(), t, CPU)).fix.startswith("raise scale")


# times and tables


def vp_logsnr(t: float) -> float:
    return -math.log(math.expm1(0.5 * t**2 * 19.9 + 0.1 * t))


@pytest.mark.parametrize(
    ("time_sampler", "unseen"),
    [
        (UniformTimes(0.3), lambda high, drawn: high - vp_logsnr(0.3)),
        (LogNormalTimes(-3, 0.5), lambda high, drawn: float(drawn.min()) - math.log(2e-3)),
    ],
    ids=["not near data", "not near noise"],
)
def test_levels_that_training_never_sees_are_counted(time_sampler: TimeSampler, unseen: Any) -> None:
    schedule, grid = VP(), torch.linspace(1, 0.01, 20, dtype=torch.float64)
    t = checks.draw_times(time_sampler, schedule)
    finding = only(checks.times(schedule, t, grid, 1.0, 1e-3))
    high = vp_logsnr(0.01)
    drawn = np.array([vp_logsnr(v) for v in t.tolist()])
    share = unseen(high, drawn) / (
        high - math.log(2e-3)
    )  # SNR below 2 max_kl is pure noise, as log(1 + SNR)/2 < max_kl
    assert f"{share:.0%} of it never seen" in finding.what
    assert finding.level == "warning"


def test_noise_beyond_the_prior_checks_limit_need_not_be_seen() -> None:
    schedule, grid = Rectified(), torch.linspace(1, 0.02, 50, dtype=torch.float64)
    t = torch.linspace(0.01, 0.96, 1000, dtype=torch.float64)  # up to log-SNR −6.36; the grid's first is −∞
    assert only(checks.times(schedule, t, grid, 1.0, 1e-3)).level == "fine"
    assert only(checks.times(schedule, t, grid, 1.0, 1e-6)).level == "warning"


def test_a_table_on_its_own_grid_is_covered() -> None:
    schedule = LinearBetas()
    t = checks.draw_times(GridTimes(), schedule)
    assert torch.equal(t, checks.draw_times(GridTimes(), schedule))
    grid = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
    assert "0% of it never seen" in only(checks.times(schedule, t, grid, 1.0, 1e-3)).what


def test_tables_of_one_length_pass_and_others_are_named() -> None:
    assert only(checks.tables({})).what == "none: continuous time"
    assert only(checks.tables({"LinearBetas": 50, "GridTimes": 50})).level == "fine"
    finding = only(checks.tables({"LinearBetas": 50, "GridTimes": 1000}))
    assert finding.level == "warning"
    assert "LinearBetas 50, GridTimes 1000" in finding.what


# the run


def test_an_empty_validation_split_is_reported_if_used() -> None:
    assert only(checks.validation(0, True)).level == "warning"
    assert only(checks.validation(0, False)).level == only(checks.validation(5, True)).level == "fine"


@pytest.mark.parametrize(
    ("decay", "steps", "level", "message"),
    [
        (0.999, 2500, "fine", "half-life of 693 steps, the run has 2,500"),
        (0.999, 999, "warning", "half-life of 693 steps, the run has 999, which ends while .* decay is 0.991"),
        (0.9999, 5000, "warning", "half-life of 6,931 steps"),
        (0.9, 10, "fine", "half-life of 6.9 steps"),
        (0.999, -1, "fine", "decay 0.999: half-life 693 steps"),
        (1e-10, 10_000, "error", "no EMA"),
        (0.001, -1, "error", "no EMA"),
        (0.4, 40, "fine", ""),
    ],
)
def test_ema(decay: float, steps: int, level: str, message: str) -> None:
    finding = only(checks.ema([decay], steps))
    assert finding.level == level
    assert re.search(message, finding.what), finding.what


def test_each_ema_is_checked_and_an_inverted_decay_is_detected() -> None:
    assert [f.level for f in checks.ema([0.9, 0.99999], 100)] == ["fine", "warning"]
    assert "'[0.999]'" in only(checks.ema([0.001], 10_000)).fix
    assert only(checks.ema([], 100)).what == "no EMA weights"


def test_ema_memory_after_one_time_constant() -> None:
    """The reason for the limit, by the weights of EMA's recursion: mean age of what is averaged, in steps."""
    n = 1000

    def age(decays: np.ndarray) -> float:
        weights = np.append(np.cumprod(decays[:0:-1])[::-1], 1.0) * (1 - decays)
        return float((weights * np.arange(n)[::-1]).sum() / weights.sum())

    warm = age((1 + np.arange(n)) / (10 + np.arange(n)))
    assert warm == pytest.approx(n / 10, rel=0.05)  # of weights that fall as (k/n)^8
    assert age(np.full(n, 0.999)) > 4 * warm


def adam(**options: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam([torch.zeros(3, requires_grad=True)], lr=0.1, **options)


@pytest.mark.parametrize(
    ("arguments", "level", "message"),
    [
        (("32-true", "None", adam(fused=True), True, [0.999]), "fine", "32-true"),
        (("bf16-mixed", "bf16-mixed", adam(fused=True), True, [0.999]), "fine", "bf16-mixed"),
        (("bf16-mixed", "16-mixed", adam(), False, []), "warning", "is bf16-mixed on a CPU"),
        (("16-mixed", "16-mixed", adam(), True, []), "warning", "overflows above 65,504"),
        (("16-mixed", "16-mixed", adam(fused=True), False, []), "warning", "overflows above 65,504"),
        (("16-mixed", "16-mixed", adam(fused=True), True, []), "error", "cannot be clipped for a fused optimizer"),
        (("16-true", "16-true", adam(), False, []), "error", "Adam's squared gradients vanish"),
        (("bf16-true", "bf16-true", adam(), False, [0.9]), "warning", "small steps are rounded away$"),
        (("bf16-true", "bf16-true", adam(), False, [0.9, 0.999]), "error", "decay 0.999 all are"),
    ],
)
def test_precision(arguments: Any, level: str, message: str) -> None:
    finding = only(checks.precision(*arguments))
    assert finding.level == level
    assert re.search(message, finding.what), finding.what


@pytest.mark.parametrize(("decay", "moves"), [(0.999, False), (0.9, True)])
def test_bfloat16_ema_stays_constant_where_the_check_warns(decay: float, moves: bool) -> None:
    average, weights = torch.ones(1, dtype=torch.bfloat16), torch.full((1,), 1.9, dtype=torch.bfloat16)
    for _ in range(2000):
        torch._foreach_lerp_([average], [weights], 1 - decay)
    assert (average.item() > 1.5) == moves


def test_squared_gradients_vanish_in_float16() -> None:
    weight = torch.ones(1, dtype=torch.float16, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=1e-3)
    weight.grad = torch.full_like(weight, 1e-5)
    optimizer.step()
    assert not weight.isfinite().all()


@pytest.mark.parametrize(("free", "level"), [(2.9, "error"), (3.1, "warning"), (5.9, "warning"), (6.1, "fine")])
def test_disk(free: float, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million float32: 4 MB, and as much for each of an average and Adam's two moments."""
    asked = []

    def usage(path: Path) -> Any:
        asked.append(path)
        return SimpleNamespace(free=int(free * 16e6))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    finding = only(checks.disk(tmp_path / "runs" / "new", [torch.zeros(1_000_000)], 1, 0, adam()))
    assert (finding.level, asked) == (level, [tmp_path])
    assert finding.what.startswith("three checkpoints take 48.0 MB")


def test_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    url = "https://example.org/a/weights.pth"

    def unasked(url: str) -> str:
        raise AssertionError

    assert only(checks.metrics(False, url, unasked)).what == "no weights are needed"
    assert "will be downloaded" in only(checks.metrics(True, url, lambda _: "")).what
    finding = only(checks.metrics(True, url, lambda asked: f"no route to {asked}"))
    assert finding.level == "error"
    assert f"(no route to {url})" in finding.what
    assert url in finding.fix
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "weights.pth").touch()
    assert only(checks.metrics(True, url, unasked)).level == "fine"


class Answers(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200 if self.path == "/there" else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_addresses_that_answer_refuse_or_stay_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        assert checks.unreachable(f"{root}/there", 20) == ""
        assert "404" in checks.unreachable(f"{root}/gone", 20)
        server.shutdown()
    assert "refused" in checks.unreachable(f"{root}/there", 20)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        reason = checks.unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.2)
        assert time.monotonic() - start < 2
    assert reason


def test_a_slow_address_lookup_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: Any, **__: Any) -> Any:
        time.sleep(5)
        raise OSError("no such host")

    monkeypatch.setattr("urllib.request.urlopen", lost)
    start = time.monotonic()
    assert checks.unreachable("http://example.org", 0.1) == "no answer in 0.1 s"
    assert time.monotonic() - start < 2


def test_findings_are_rows_with_a_summary() -> None:
    fine, bad = Finding("fine", "disk", "42 MB"), Finding("error", "prior", "no noise", "raise it")
    assert checks.rows([fine]) == [{"check": "disk", "level": "ok", "finding": "42 MB"}]
    assert checks.summary([fine]) == "no errors, no warnings: ready for fit"
    findings = [bad, bad, bad._replace(level="warning")]
    assert [row["level"] for row in checks.rows(findings)] == ["error", "error", "warning"]
    assert checks.rows(findings)[0]["finding"] == "no noise. Fix: raise it"
    assert checks.summary(findings) == "2 errors, 1 warning: fix the errors first"


@pytest.mark.parametrize(
    ("top", "levels", "message", "fix"),
    [
        (4095, 65_536, "12 of 16 bits", "data.bits to 12"),
        (255, 65_536, "8 of 16 bits", "8 bits"),
        (15, 256, "4 of 8 bits", "rescale the values to 0 … 255"),
    ],
)
def test_values_that_use_a_few_bits_are_a_warning(top: int, levels: int, message: str, fix: str) -> None:
    x = torch.linspace(0, top, 64).round().reshape(4, 1, 4, 4) * (2 / (levels - 1)) - 1
    (finding,) = checks.data(x, (-1.0, 1.0), float(x.square().mean()), None, levels)
    assert finding.level == "warning"
    assert message in finding.what
    assert fix in finding.fix
    full = torch.linspace(-1, 1, 64).reshape(4, 1, 4, 4)
    assert next(checks.data(full, (-1.0, 1.0), 0.3, None, levels)).level == "fine"


# learning rate, and noise levels far from what any network takes


@pytest.mark.parametrize(
    ("rates", "level"),
    [
        ([], "fine"),
        ([1e-3] * 50, "fine"),
        ([4e-5, 1e-3, 4e-9], "fine"),
        ([1e-3, 2e-2, 0.4], "error"),
        ([1e-3, math.nan], "error"),
        ([1e-3, -1e-3], "error"),
        ([1e-3 * 0.5**k for k in range(100)], "warning"),
    ],
    ids=["constant", "the same", "one cycle", "grows", "nan", "negative", "vanishes"],
)
def test_learning_rates_of_a_schedule(rates: list[float], level: str) -> None:
    assert only(checks.learning_rate(rates, 1e-3, len(rates))).level == level


@pytest.mark.parametrize(
    ("noise_input", "level"),
    [(LogSNR(), "fine"), (ScaledTime(999), "fine"), (ScaledTime(4000, -1), "fine"), (LogSNR(999), "warning")],
    ids=["log-SNR", "time", "4000 steps", "a scale of time for log-SNR"],
)
def test_the_range_of_c_noise_is_looked_at(noise_input: NoiseInput, level: str) -> None:
    """Also where the network has no embedding that is known."""
    t = checks.draw_times(LogNormalTimes(-0.5, 1.5), VP())
    finding = only(checks.embedding(None, noise_input, VP(), t, CPU))
    assert finding.level == level
    assert level == "fine" or "noise_input" in finding.fix


@pytest.mark.parametrize(("size", "level"), [(1.0, "fine"), (382.0, "warning"), (math.inf, "warning")])
def test_outputs_at_the_ends_of_the_times_are_of_order_one(size: float, level: str) -> None:
    seen = checks.Probe(torch.ones(2, 2), "", None, {0.5: 1.0, 999.0: size})
    assert only(checks.network(seen, (2, 2))).level == level
