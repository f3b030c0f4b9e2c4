"""What a wheel holds: the package, the shipped configurations and models, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from shell import ROOT

from diffusion_pl.runtime.shipped_configs import shipped_configs


@pytest.mark.slow
def test_wheel_holds_configs_and_zoo(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {f"diffusion_pl/configs/{name}.yaml" for name in shipped_configs()} <= set(names)
    assert {f"diffusion_pl/zoo/{name}/model.safetensors" for name in ("datasaurus", "digits")} <= set(names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"diffusion_pl"}
    code = (
        "import sys; sys.path.insert(0, 'site')\n"
        "from pathlib import Path; import diffusion_pl\n"
        "from diffusion_pl.runtime.shipped_configs import find_config\n"
        "assert 'site' in diffusion_pl.__file__, diffusion_pl.__file__\n"
        "print(find_config(Path('digits/vp')).is_file(), find_config(Path('digits/vp')))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("True") and "site/diffusion_pl/configs" in done.stdout.replace("\\", "/"), done
