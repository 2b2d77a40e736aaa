"""The README's Python example runs as printed and prints what it says."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_python_example():
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    expected = re.search(r"print\(.*#\s*(.*)", example).group(1)
    result = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == expected
    assert len(example.strip().splitlines()) <= 18
