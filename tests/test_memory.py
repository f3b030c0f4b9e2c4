"""Freed memory is kept: a step of `fit` asks the system for no fresh pages."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = Path(__file__).parent.parent / "configs" / "datasaurus" / "vp.yaml"

# Page faults of the last 60 steps of a run, in a process of its own: a run before it would have warmed its memory.
PROGRAM = """
import resource, sys
from diffusion_pl.training import LeanCallback
from diffusion_pl.__main__ import main

faults = []

class Faults(LeanCallback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step in (40, 100):
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

sys.modules["faults"] = sys.modules["__main__"]
main(["fit", "--config", sys.argv[1], "--trainer.max_steps", "100", "--trainer.callbacks", "faults.Faults"])
print("per step", (faults[1] - faults[0]) / 60)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_a_step_of_fit_takes_hardly_any_fresh_pages(tmp_path: Path) -> None:
    (tmp_path / "faults.py").write_text(PROGRAM)
    command = [sys.executable, "faults.py", str(CONFIG)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(run.stdout.split()[-1]) < 100  # several hundred to two thousand without keep_freed_memory
