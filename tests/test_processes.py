"""Launch: many processes are one run, however they were started and whatever ends them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from shell import LAST, assert_same_training, checkpoint, cli, differences, environment, fake_scontrol, fit, tiny_config
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from diffusion_pl.runtime import processes as launch
from diffusion_pl.runtime.processes import Peers, agree, find_peers, is_connection_lost, rank_label
from diffusion_pl.runtime.run_card import read_card

# Which processes there are, and which this is


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets variables as a launcher would; none of another launcher is there."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    for name in {*names, *(name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_")))}:
        monkeypatch.setenv(name, "")  # so that it is as before at the end, also if Lightning sets it
        monkeypatch.delenv(name)

    def set_all(**variables: Any) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return set_all


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 1}
SLURM = {"SLURM_JOB_ID": 81234, "SLURM_JOB_NAME": "train", "SLURM_NTASKS": 4, "SLURM_NTASKS_PER_NODE": 2}
SLURM |= {"SLURM_PROCID": 2, "SLURM_LOCALID": 0, "SLURM_NODEID": 1, "SLURM_NNODES": 2, "SLURM_NODELIST": "host[3-4]"}


def test_a_process_alone_has_no_peers(env: Callable[..., None]) -> None:
    assert find_peers(nodes=1) is None
    assert rank_label() == ""


def test_under_torchrun(env: Callable[..., None]) -> None:
    env(**TORCHRUN, MASTER_ADDR="a", MASTER_PORT=29500, TORCHELASTIC_USE_AGENT_STORE="True")
    assert find_peers(nodes=2) == Peers(3, 4, "a", 29500, served=True)
    assert rank_label() == "RANK=3"
    env(TORCHELASTIC_USE_AGENT_STORE="False")
    assert find_peers(nodes=2) == Peers(3, 4, "a", 29500, served=False)
    env(RANK=0, WORLD_SIZE=1, LOCAL_RANK=0)
    assert find_peers(nodes=1) is None


def test_under_slurm(env: Callable[..., None]) -> None:
    env(**SLURM)
    assert find_peers(nodes=2) == Peers(2, 4, "host3", 16234, served=False)
    assert rank_label() == "SLURM_PROCID=2"
    env(SLURM_JOB_NAME="interactive")
    assert find_peers(nodes=1) is None


def test_started_by_hand_on_each_machine(env: Callable[..., None]) -> None:
    with pytest.raises(ValueError, match="3 nodes without torchrun or SLURM need MASTER_ADDR, MASTER_PORT, NODE_RANK"):
        find_peers(nodes=3)
    env(MASTER_ADDR="a", MASTER_PORT=2000, NODE_RANK=1)
    assert find_peers(nodes=3) == Peers(1, 3, "a", 2000, served=False)
    assert rank_label() == "NODE_RANK=1"
    env(NODE_RANK=0, LOCAL_RANK=1)  # a child of Lightning's
    assert rank_label() == "LOCAL_RANK=1"


# The first decides


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def together(decide: Callable[[], dict[str, Any]], world: int = 3, port: int | None = None) -> list[Any]:
    """What `agree` says in each of some processes, here threads; an exception as such.

    With a port, a store is there already, as under torchrun.
    """

    def one(rank: int) -> Any:
        def mine() -> dict[str, Any]:
            assert rank == 0, "asked to decide"
            time.sleep(0.2)  # the others are there by now
            return decide()

        try:
            return agree(mine, Peers(rank, world, "127.0.0.1", port or free, served=port is not None))
        except (Exception, SystemExit) as error:
            return error

    free = free_port()
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(one, range(world)))


def test_all_take_what_the_first_decides() -> None:
    answer = {"folder": "runs/a-2", "ckpt_path": None}
    assert together(lambda: answer) == [answer] * 3


def test_after_a_restart_the_previous_attempt_is_ignored(env: Callable[..., None]) -> None:
    """Of the same store; torch is given another each time."""
    env(MASTER_PORT=1, TORCHELASTIC_USE_AGENT_STORE="True")
    agents = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ports = set()
    for attempt in ("first", "second"):
        answer = {"folder": attempt}
        assert together(lambda answer=answer: answer, port=agents.port) == [answer] * 3  # type: ignore[misc]
        assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "False"
        ports.add(int(os.environ["MASTER_PORT"]))
    assert len(ports - {1, agents.port}) == 2


def test_an_error_of_rank_0_ends_all_and_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "SKEW", 0)

    def refuse() -> dict[str, Any]:
        raise FileNotFoundError("no checkpoint")

    first, *others = together(refuse)
    assert isinstance(first, FileNotFoundError)
    assert [type(other) for other in others] == [SystemExit] * 2
    assert [other.code for other in others] == [2, 2]


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, r"1 of 2 processes .*127.0.0.1:\d+: .*MASTER_PORT"),
        (1, r"process 1 of 2 .*127.0.0.1:\d+: .*MASTER_PORT"),
    ],
)
def test_whoever_stays_alone_says_so_in_time(rank: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "TIMEOUT", 1.0)
    began = time.monotonic()
    with pytest.raises(OSError, match=message) as error:
        agree(dict, Peers(rank, 2, "127.0.0.1", free_port(), served=False))
    assert "\n" not in str(error.value)
    assert 0.9 < time.monotonic() - began < 10


def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "TIMEOUT", 1.0)
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"at 127.0.0.1:{port}: .* does MASTER_PORT name a free, open port"):
            agree(dict, Peers(0, 2, "127.0.0.1", port, served=False))


# One voice, one end


def test_all_ranks_but_0_wait_before_reporting_an_error(
    tmp_path: Path, env: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    assert cli(tmp_path, "fit", "--trainer.max_step", 3).error.startswith("unknown option --trainer.max_step;")
    assert waited == []
    env(SLURM_PROCID=2)
    assert cli(tmp_path, "fit", "--trainer.max_step", 3).error.startswith("SLURM_PROCID=2: unknown option --trainer")
    assert waited == [launch.SKEW]


class Loses(Callback):
    """Raises what gloo does when another process is gone."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 7:
            raise RuntimeError(
                "[/build/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:28057. "
                "This is typically caused by a remote worker crashing."
            )


def test_a_lost_connection_is_reported_in_one_line(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, trainer__callbacks=[{"class_path": "test_processes.Loses"}])
    done = cli(tmp_path, "fit", "--config", config, "--run", "run", "--saver.every_n_steps", 5)
    assert done.error == (
        "lost connection to another process of the run; the last checkpoint is intact. Resume with "
        "--ckpt_path last ([/build/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection "
        "closed by peer [127.0.0.1]:28057)"
    )
    assert checkpoint(tmp_path / "runs" / "run")["global_step"] == 5


def test_an_own_error_is_not_a_lost_connection() -> None:
    assert not is_connection_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert is_connection_lost(torch.distributed.DistBackendError("NCCL communicator was aborted"))


def test_a_process_ends_soon_after_the_one_that_started_it(tmp_path: Path) -> None:
    """Even one that is deaf, as if in a collective of a GPU."""
    child = (
        "import os, signal, time; from diffusion_pl.runtime.processes import end_with_parent; end_with_parent();"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); open('pid', 'w').write(str(os.getpid()));"
        "os.rename('pid', 'ready'); time.sleep(60)"
    )
    parent = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]]).wait()"
    with subprocess.Popen([sys.executable, "-c", parent, child], cwd=tmp_path, env=environment()) as process:
        try:
            until(lambda: (tmp_path / "ready").exists())
            pid = int((tmp_path / "ready").read_text())
            time.sleep(1)
            assert alive(pid)
        finally:
            process.kill()
    until(lambda: not alive(pid), launch.GRACE + 5)


# --ckpt_path auto


def test_auto_starts_and_resumes_with_one_command(tmp_path: Path) -> None:
    folder = fit(tmp_path, "--ckpt_path", "auto", trainer__max_steps=13)
    assert checkpoint(folder)["global_step"] == 13
    assert fit(tmp_path, "--ckpt_path", "auto") == folder
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]
    assert_same_training(folder, fit(tmp_path, run="whole"))
    with_nothing_to_do = (folder / LAST).read_bytes()
    fit(tmp_path, "--ckpt_path", "auto")  # a job that was requeued after its end
    assert (folder / LAST).read_bytes() == with_nothing_to_do


def test_auto_takes_the_folder_of_a_run_that_saved_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "runs" / "run").mkdir(parents=True)
    (tmp_path / "runs" / "run" / "config.yaml").write_text("of a run that was killed early")
    assert checkpoint(fit(tmp_path, "--ckpt_path", "auto"))["global_step"] == 40
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]


def test_auto_resumes_the_newest_run_of_that_name(tmp_path: Path) -> None:
    fit(tmp_path, trainer__max_steps=2)
    fit(tmp_path, trainer__max_steps=3)
    fit(tmp_path, "--ckpt_path", "auto", trainer__max_steps=5)
    steps = {path.name: checkpoint(path)["global_step"] for path in (tmp_path / "runs").iterdir()}
    assert steps == {"run": 2, "run-2": 5}


def test_auto_of_other_commands_needs_a_checkpoint(tmp_path: Path) -> None:
    done = cli(tmp_path, "validate", "--config", tiny_config(tmp_path), "--ckpt_path", "auto")
    assert done.error == "validate needs trained weights: add --ckpt_path last (or a checkpoint's path)"


# Strategies


@pytest.mark.parametrize(
    "strategy",
    [
        "fsdp",
        "deepspeed_stage_2",
        "{class_path: FSDPStrategy}",
        "{class_path: lightning.pytorch.strategies.ModelParallelStrategy}",
    ],
)
def test_sharded_models_are_refused(tmp_path: Path, strategy: str) -> None:
    done = cli(tmp_path, "fit", "--config", tiny_config(tmp_path), "--trainer.strategy", strategy)
    assert (
        "Strategy shards the model, but the averages and checkpoints here are of whole weights; use ddp" in done.error
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("strategy", ["single_device", "{class_path: SingleDeviceStrategy, init_args: {device: cpu}}"])
def test_strategies_with_replicated_models_train(tmp_path: Path, strategy: str) -> None:
    assert checkpoint(fit(tmp_path, "--trainer.strategy", strategy, trainer__max_steps=1))["global_step"] == 1


# Real processes


def until(condition: Callable[[], bool], seconds: float = 120) -> float:
    """Wait for something; how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - began


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended, but whose status nobody fetched, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Report(Callback):
    """What each process saw, in the working directory: rankN.json at the start, stoppedN at an early end, saves."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        file = Path(f"rank{trainer.global_rank}.json")
        report = {"pid": os.getpid(), "run": trainer.default_root_dir, "val_batches": trainer.num_val_batches}
        file.with_suffix(".part").write_text(json.dumps(report))
        file.with_suffix(".part").rename(file)

    def on_train_batch_end(self, *args: Any) -> None:
        time.sleep(0.01)  # slow enough for a signal to find the run at work

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            with Path("saves").open("a") as file:
                file.write(f"{trainer.global_step}\n")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        Path(f"stopped{trainer.global_rank}").write_text(f"{trainer.global_step} {type(exception).__name__}")


STEPS = 150
ARGS = ["fit", "--config", "config.yaml", "--trainer.devices", 2, "--trainer.strategy", "ddp"]
LAUNCHERS = {
    "Lightning": ["-m", "diffusion_pl"],
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "--", "diffusion_pl"],
}
both_launchers = pytest.mark.parametrize("launcher", LAUNCHERS)


def write_config(folder: Path, steps: int = STEPS, **changes: Any) -> None:
    callbacks = [{"class_path": "test_processes.Report"}]
    options: dict[str, Any] = {"trainer__callbacks": callbacks, "trainer__max_steps": steps, **changes}
    tiny_config(folder, "config.yaml", **options)


@contextmanager
def started(
    folder: Path, command: Sequence[Any], prefix: Sequence[str] = (), **variables: Any
) -> Iterator["subprocess.Popen[str]"]:
    """A process that is killed at the end, with all that it started and that listens to its end."""
    process = subprocess.Popen(
        [*prefix, sys.executable, *map(str, command)],
        cwd=folder,
        env={**environment(), **{name: str(value) for name, value in variables.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=60)


def run(folder: Path, command: Sequence[Any], seconds: float = 240, **variables: Any) -> tuple[int, str, str]:
    """Exit status and output of a command that ends by itself."""
    with started(folder, command, **variables) as process:
        out, err = process.communicate(timeout=seconds)
        return process.returncode, out, err


def ranks(folder: Path, process: "subprocess.Popen[str]") -> list[dict[str, Any]]:
    """What the two processes of a run report when training has begun."""
    files = [folder / f"rank{rank}.json" for rank in (0, 1)]
    until(lambda: all(file.exists() for file in files) or process.poll() is not None, 240)
    assert process.poll() is None, process.communicate()
    return [json.loads(file.read_text()) for file in files]


NODES = """
import os, sys
os.chdir(f"node{os.environ['RANK']}")
from diffusion_pl.__main__ import main
sys.exit(main())
"""


def test_torchrun_processes_share_folder_stop_step_and_save(tmp_path: Path) -> None:
    """Two that do not see the same disk, of which only the second gets the signal to stop."""
    (tmp_path / "node.py").write_text(NODES)
    for rank in (0, 1):
        write_config(tmp_path / f"node{rank}", 5000)
    (tmp_path / "node1" / "runs" / "run").mkdir(parents=True)  # left to itself it would take run-2
    command = [*LAUNCHERS["torchrun"][:4], "node.py", *ARGS]
    command[4:4] = ["--"]
    with started(tmp_path, [*command, "--run", "run"]) as process:
        reports = [tmp_path / f"node{rank}" / f"rank{rank}.json" for rank in (0, 1)]
        until(lambda: all(file.exists() for file in reports) or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        first, second = (json.loads(file.read_text()) for file in reports)
        os.kill(second["pid"], signal.SIGUSR1)
        out, err = process.communicate(timeout=60)
    assert first["run"] == second["run"] == "runs/run"
    assert process.returncode != 0
    assert out.splitlines() == [
        "run: runs/run",
        "stopped; runs/run/checkpoints/last.ckpt is saved. Resume with --ckpt_path runs/run/checkpoints/last.ckpt",
    ]
    assert "diffusion_pl: error" not in err
    (stopped,) = {(tmp_path / f"node{rank}" / f"stopped{rank}").read_text() for rank in (0, 1)}
    step, why = stopped.split()
    assert why == "SIGTERMException"
    assert (tmp_path / "node0" / "saves").read_text() == f"{step}\n"
    assert checkpoint(tmp_path / "node0" / "runs" / "run")["global_step"] == int(step)
    card = read_card(tmp_path / "node0" / "runs" / "run")
    (session,) = card["sessions"]
    assert (card["parallel"]["world_size"], session["world_size"], card["hardware"]["devices"]) == (2, 2, 2)
    assert card["parallel"]["strategy"] == "DDPStrategy"
    assert not alive(first["pid"]) and not alive(second["pid"])


# Slow: minutes


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, by Lightning's launch, that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    write_config(folder)
    code, out, err = run(folder, [*LAUNCHERS["Lightning"], *ARGS, "--run", "whole"])
    assert (code, out.count("run saved to")) == (0, 1), err
    return folder / "runs" / "whole"


@pytest.mark.slow
@both_launchers
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_all_and_the_run_resumes_exactly(
    tmp_path: Path, whole: Path, launcher: str, killed: int
) -> None:
    write_config(tmp_path)
    command = [*LAUNCHERS[launcher], *ARGS, "--run", "run", "--saver.every_n_steps", 15]
    folder = tmp_path / "runs" / "run"
    with started(tmp_path, command) as process:
        reports = ranks(tmp_path, process)
        until((folder / LAST).exists)
        os.kill(reports[killed]["pid"], signal.SIGKILL)
        took = until(lambda: process.poll() is not None and not any(alive(r["pid"]) for r in reports), 60)
        out, err = process.communicate(timeout=60)
    print(f"{launcher}, process {killed}: all ended {took:.1f} s after the kill")
    assert process.returncode != 0
    assert "[rank" not in err  # so torch begins each line of a traceback
    assert err.count("diffusion_pl: error: lost connection to another process") <= 1
    assert [file.name for file in (folder / "checkpoints").glob("*.ckpt")] == ["last.ckpt"]
    saved = checkpoint(folder)["global_step"]
    assert saved % 15 == 0 and saved < STEPS

    code, out, err = run(tmp_path, [*command, "--ckpt_path", "last"])
    assert (code, out.count("run saved to runs/run\n")) == (0, 1), err
    assert_same_training(whole, folder)


@pytest.mark.slow
@both_launchers
@pytest.mark.parametrize("target", ["parent", "process 1"])
def test_a_stop_signal_saves_once_and_the_run_resumes_exactly(
    tmp_path: Path, whole: Path, launcher: str, target: str
) -> None:
    write_config(tmp_path)
    command = [*LAUNCHERS[launcher], *ARGS, "--run", "run"]
    with started(tmp_path, command) as process:
        reports = ranks(tmp_path, process)
        os.kill(process.pid if target == "parent" else reports[1]["pid"], signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == {"Lightning": 143, "torchrun": 1}[launcher], err
    (stopped,) = (line for line in out.splitlines() if line.startswith("stopped; "))
    assert "Resume with --ckpt_path runs/run" in stopped
    assert out.count("run: runs/run\n") == 1
    assert len((tmp_path / "saves").read_text().split()) == 1
    assert (tmp_path / "stopped0").read_text() == (tmp_path / "stopped1").read_text()
    until(lambda: not any(alive(report["pid"]) for report in reports), 10)

    code, _, err = run(tmp_path, [*command, "--ckpt_path", "last"])
    assert code == 0, err
    assert_same_training(whole, tmp_path / "runs" / "run")


@pytest.mark.slow
def test_a_stop_during_uneven_validation_stops_all_together(tmp_path: Path) -> None:
    """They validate after each step, 7 and 6 of 13 points in batches of 6; at the end they sum up their losses."""
    data = {"batch_size": 6, "val_fraction": 0.092, "repeats": 1}
    write_config(tmp_path, 5000, trainer__val_check_interval=1, data__init_args=data)
    with started(tmp_path, [*LAUNCHERS["Lightning"], *ARGS, "--run", "run"]) as process:
        reports = ranks(tmp_path, process)
        assert [report["val_batches"] for report in reports] == [[2], [1]]
        time.sleep(1)
        os.kill(reports[0]["pid"], signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert len((tmp_path / "saves").read_text().split()) == 1
    assert (tmp_path / "stopped0").read_text() == (tmp_path / "stopped1").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("rendezvous", [[], ["--standalone"]], ids=["static", "c10d"])
def test_torchrun_restarts_with_auto(tmp_path: Path, whole: Path, rendezvous: list[str]) -> None:
    write_config(tmp_path)
    command = [*LAUNCHERS["torchrun"], *ARGS, "--run", "run", "--saver.every_n_steps", 15, "--ckpt_path", "auto"]
    command[2:2] = [*rendezvous, "--max_restarts", 1]
    with started(tmp_path, command) as process:
        reports = ranks(tmp_path, process)
        until((tmp_path / "runs" / "run" / LAST).exists)
        os.kill(reports[1]["pid"], signal.SIGKILL)
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.count("run saved to runs/run\n") == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]
    assert_same_training(whole, tmp_path / "runs" / "run")


@pytest.mark.slow
def test_under_torchrun_an_error_is_reported_once(tmp_path: Path) -> None:
    write_config(tmp_path)
    wrong: Any
    for wrong, message in [
        (["--ckpt_path", "last"], "no checkpoint at runs/run/checkpoints/last.ckpt: nothing to continue from"),
        (["--trainer.max_step", 3], "unknown option --trainer.max_step; did you mean --trainer.max_steps?"),
    ]:
        code, out, err = run(tmp_path, [*LAUNCHERS["torchrun"], *ARGS, "--run", "run", *wrong])
        assert (code, out) == (1, "")
        assert [line for line in err.splitlines() if "error: " in line] == [f"diffusion_pl: error: {message}"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_slurm_job_is_requeued_once_and_resumes_exactly(tmp_path: Path, whole: Path) -> None:
    """srun's processes, by hand: each with srun's variables, all with the signal."""
    write_config(tmp_path)
    bin_folder = fake_scontrol(tmp_path)
    job: dict[str, Any] = {
        "SLURM_JOB_ID": str(10000 + free_port() % 10000),
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": 2,
    }
    job |= {"SLURM_NTASKS_PER_NODE": 2, "SLURM_NNODES": 1, "SLURM_NODEID": 0, "SLURM_NODELIST": "localhost"}
    job |= {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    command = [*LAUNCHERS["Lightning"], *ARGS, "--run", "run", "--ckpt_path", "auto"]

    def srun(stop: bool) -> tuple[list[int], list[str]]:
        with ExitStack() as stack:
            pair = [
                stack.enter_context(started(tmp_path, command, **job, SLURM_PROCID=k, SLURM_LOCALID=k)) for k in (0, 1)
            ]
            if stop:
                ranks(tmp_path, pair[0])
                for process in pair:
                    process.send_signal(signal.SIGUSR1)
            texts = [process.communicate(timeout=240) for process in pair]
            assert not any(word in err for _, err in texts for word in ("Traceback", "error")), texts
            return [process.returncode for process in pair], [out for out, _ in texts]

    codes, (first, second) = srun(stop=True)
    assert codes == [143, 143]
    assert f"job {job['SLURM_JOB_ID']} is requeued" in first.splitlines()
    assert second == ""
    assert (tmp_path / "scontrol.log").read_text() == f"requeue {job['SLURM_JOB_ID']}\n"
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    codes, (first, second) = srun(stop=False)
    assert (codes, second) == ([0, 0], "")
    assert "run saved to runs/run\n" in first
    assert_same_training(whole, tmp_path / "runs" / "run")


Machines = list[tuple[list[str], str, str]]


def ip(*args: Any) -> None:
    subprocess.run(["ip", *map(str, args)], check=True, capture_output=True)


@contextmanager
def two_machines() -> Iterator[Machines]:
    """Command prefix, address and interface of two network namespaces with a cable between them.

    Where there may be no namespaces, two loopback addresses of this machine.
    """
    names = [f"diffusion{os.getpid()}{end}" for end in "ab"]
    links = [f"dpl{os.getpid() % 100000}{end}" for end in "ab"]
    addresses = ["10.77.0.1", "10.77.0.2"]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
            for name, link, address in zip(names, links, addresses, strict=True):
                ip("link", "set", link, "netns", name)
                ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
                ip("-n", name, "link", "set", link, "up")
                ip("-n", name, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError):
            yield [([], f"127.0.0.{k}", "lo") for k in (1, 2)]
        else:
            prefixes = [["ip", "netns", "exec", name] for name in names]
            yield list(zip(prefixes, addresses, links, strict=True))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)  # and the cable with it


ON_ONE_OF_TWO = ["fit", "--config", "config.yaml", "--trainer.strategy", "ddp", "--run", "two"]
ON_ONE_OF_TWO += ["--trainer.devices", "1", "--trainer.num_nodes", "2"]


@contextmanager
def on_both(machines: Machines, folder: Path, start: Callable[[int], Sequence[Any]], **variables: Any) -> Iterator[Any]:
    """A process on each machine, from the command that `start` gives for its rank."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                started(folder, start(rank), prefix, GLOO_SOCKET_IFNAME=interface, NODE_RANK=rank, **variables)
            )
            for rank, (prefix, _, interface) in enumerate(machines)
        ]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "by hand"])
def test_two_machines_do_what_two_processes_of_one_do(tmp_path: Path, launcher: str) -> None:
    write_config(tmp_path, 20)
    port = free_port()
    with two_machines() as machines:
        print("machines:", machines)
        first = machines[0][1]

        def torchrun(rank: int) -> Sequence[Any]:
            nodes = ["--nnodes", 2, "--nproc_per_node", 1, "--node_rank", rank, "--local_addr", machines[rank][1]]
            main = ["--master_addr", first, "--master_port", port]
            return ["-m", "torch.distributed.run", *nodes, *main, "-m", "--", "diffusion_pl", *ON_ONE_OF_TWO]

        def by_hand(rank: int) -> Sequence[Any]:
            return ["-m", "diffusion_pl", *ON_ONE_OF_TWO]

        if launcher == "torchrun":
            both = on_both(machines, tmp_path, torchrun)
        else:
            both = on_both(machines, tmp_path, by_hand, MASTER_ADDR=first, MASTER_PORT=port)
        with both as pair:
            texts = [process.communicate(timeout=240) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], texts
    assert [out.count("run saved to runs/two\n") for out, _ in texts] == [1, 0]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["two"]

    code, _, err = run(tmp_path, [*LAUNCHERS["Lightning"], *ARGS, "--run", "one"])
    assert code == 0, err
    two, one = (checkpoint(tmp_path / "runs" / name) for name in ("two", "one"))
    assert two["global_step"] == 20
    assert not list(differences(two["state_dict"], one["state_dict"]))
    assert not list(differences(two["callbacks"], one["callbacks"]))


@pytest.mark.slow
def test_two_machines_restart_and_resume_exactly(tmp_path: Path, whole: Path) -> None:
    write_config(tmp_path)
    port = free_port()
    with two_machines() as machines:

        def torchrun(rank: int) -> Sequence[Any]:
            nodes = ["--nnodes", 2, "--nproc_per_node", 1, "--max_restarts", 1, "--local_addr", machines[rank][1]]
            meet = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"{machines[0][1]}:{port}", "--rdzv_id", "job"]
            meet += ["--rdzv_conf", f"is_host={1 - rank}"]  # the names of these machines say nothing
            args = [*ON_ONE_OF_TWO, "--saver.every_n_steps", 15, "--ckpt_path", "auto"]
            return ["-m", "torch.distributed.run", *nodes, *meet, "-m", "--", "diffusion_pl", *args]

        with on_both(machines, tmp_path, torchrun) as pair:
            reports = ranks(tmp_path, pair[0])
            until((tmp_path / "runs" / "two" / LAST).exists)
            os.kill(reports[1]["pid"], signal.SIGKILL)
            texts = [process.communicate(timeout=300) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], texts
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["two"]
    assert_same_training(whole, tmp_path / "runs" / "two")
