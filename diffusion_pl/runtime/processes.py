"""One run in many processes: they agree on its folder, one of them prints, and they end together.

Lightning starts the processes of one machine itself; torchrun and SLURM start them from outside, on any number of
machines.  Lightning brings them together when training begins.  This module is for what comes before that, and for
what must work when they can no longer communicate.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import uuid4

from .upstream.torch import has_agent_store, meet_at_own_store

TIMEOUT = 300.0  # seconds; from the first process to the last that comes: the imports of one may take a minute longer
GRACE = 2.0  # seconds that a process continues after the one that started it has ended
SKEW = 10.0  # seconds by which processes that fail or stop together may differ; leaving torch takes some
_keep: list[Any] = []  # the process that hosts a store keeps it, so that torch finds it when it connects the processes


class Peers(NamedTuple):
    """The processes that agree before Lightning has connected them.

    Attributes:
        rank, world: which of them this is, and how many there are.
        address, port: where the first of them can be reached.
        served: whether a store is there already, torchrun's.
    """

    rank: int
    world: int
    address: str
    port: int
    served: bool


def rank_label() -> str:
    """Which process of a run this is, in words such as RANK=1; empty for the first and for one on its own."""
    names = ["RANK"] if "TORCHELASTIC_RUN_ID" in os.environ else ["RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"]
    return next((f"{name}={os.environ[name]}" for name in names if os.environ.get(name, "0") != "0"), "")


def find_peers(nodes: int) -> Peers | None:
    """The processes that were started from outside; None if this one is alone or starts the others itself.

    Args:
        nodes: number of machines, on each of which a process was started by hand if no launcher is at work.

    Raises:
        ValueError: several machines, and nothing says where the first of them is.
    """
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    for kind in (TorchElasticEnvironment, SLURMEnvironment):  # in Lightning's order
        if kind.detect():
            environment = kind()
            if environment.world_size() == 1:
                return None
            first, size = environment.global_rank(), environment.world_size()
            return Peers(first, size, environment.main_address, environment.main_port, has_agent_store())
    if nodes == 1:
        return None
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
    if missing:
        raise ValueError(f"{nodes} nodes without torchrun or SLURM need {', '.join(missing)} in the environment")
    address, port, rank = (os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"))
    return Peers(int(rank), nodes, address, int(port), False)


def agree(decide: Callable[[], dict[str, Any]], peers: Peers | None) -> dict[str, Any]:
    """What the first process decides, in all of them; under torchrun also a store of their own for torch to meet at.

    Torchrun's store outlives its restarts, with the addresses of processes that are gone, which torch would take.

    Args:
        decide: called in the first process only; its answer consists of plain values.
        peers: see `find_peers`.

    Raises:
        OSError: the others did not come within TIMEOUT, or the first cannot be reached.
        SystemExit: 2, in all but the first, when `decide` raises.
    """
    if peers is None:
        return decide()
    from torch.distributed import DistError, PrefixStore, TCPStore

    first = peers.rank == 0
    meeting = f"{peers.address}:{peers.port}"
    hint = "are all running, and does MASTER_PORT name a free, open port?"
    common: dict[str, Any] = {"timeout": timedelta(seconds=TIMEOUT), "wait_for_workers": False, "multi_tenant": True}
    try:
        server = TCPStore(peers.address, peers.port, is_master=first and not peers.served, **common)
        _keep.append(server)
        store = PrefixStore("diffusion_pl", server)
        if not first:
            message = _receive(store, peers.rank)
        else:
            message = {"answer": None, "port": peers.port}
            try:
                message["answer"] = decide()
            except Exception:
                _send(store, peers.world, message)
                raise
            if peers.served:
                _keep.append(TCPStore(peers.address, 0, is_master=True, **common))
                message["port"] = _keep[-1].port
            _send(store, peers.world, message)
    except TooFew as error:
        raise OSError(f"{error} of {peers.world} processes did not come to {meeting}: {hint}") from error
    except DistError as error:
        reason = str(error).splitlines()[0]
        raise OSError(
            f"process {peers.rank} of {peers.world} cannot meet the others at {meeting}: {hint} ({reason})"
        ) from error
    if message["answer"] is None:
        report_from_rank_zero()
        raise SystemExit(2)
    if peers.served:
        meet_at_own_store(message["port"])
    answer: dict[str, Any] = message["answer"]
    return answer


class TooFew(Exception):
    """How many processes did not come within TIMEOUT."""


def _receive(store: Any, rank: int) -> dict[str, Any]:
    """In all but the first process: receive its message."""
    ticket = uuid4().hex  # a former attempt used other tickets
    store.set(f"ticket of {rank}", ticket)
    message: dict[str, Any] = json.loads(store.get(f"for {ticket}"))
    store.set(f"{message['sender']} was heard by {rank}", "")
    return message


def _send(store: Any, world: int, message: dict[str, Any]) -> None:
    """In the first process: send a message to the others, and wait until each has received it.

    After that they do not need this process: if it fails now, they fail by themselves.
    """
    sender, end = uuid4().hex, time.monotonic() + TIMEOUT
    waiting = set(range(1, world))
    while waiting:
        if time.monotonic() > end:
            raise TooFew(len(waiting))
        for rank in tuple(waiting):
            if store.check([f"{sender} was heard by {rank}"]):
                waiting.remove(rank)
            elif store.check([f"ticket of {rank}"]):  # maybe an old one, soon to be replaced
                store.set(f"for {store.get(f'ticket of {rank}').decode()}", json.dumps({**message, "sender": sender}))
        time.sleep(0.05)


def report_from_rank_zero() -> None:
    """Before ending with an error: where all processes do, the launcher ends the others when the first has ended.

    So the error is printed once.  A process that still runs after SKEW prints its own error.
    """
    if rank_label():
        time.sleep(SKEW)


def leave_group() -> None:
    """Disconnect the processes: from here on no metric waits for the others.

    If this is left to the interpreter's end, torch's threads may crash the process.
    """
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    _keep.clear()


def is_connection_lost(error: RuntimeError) -> bool:
    """Whether an error says that the processes are disconnected, mostly because one of them has ended."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or "/gloo/" in str(error)  # gloo has no class of its own


def end_with_parent() -> None:
    """Let this process end with the one that started it.

    A process that waits for others in a collective of a GPU waits for ten minutes, even if they have ended.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        time.sleep(GRACE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
