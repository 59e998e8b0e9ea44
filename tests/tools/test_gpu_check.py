import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.mark.parametrize("name", ["gpu_check.sh", "check.sh"])
def test_asked_for_help_it_says_what_it_does_and_does_nothing(name):
    asked = subprocess.run(["bash", TOOLS / name, "--help"], capture_output=True, text=True, timeout=60)
    assert asked.returncode == 0
    assert f"  tools/{name} [" in asked.stdout
    assert len(asked.stdout.splitlines()) < 10
