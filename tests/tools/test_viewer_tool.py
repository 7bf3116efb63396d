"""The viewer's command line: where it says it is, how it ends, and what it refuses in one line."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from mapanything.errors import InputError
from mapanything.tools.viewer import address_lines, main

TOOL = (sys.executable, "-m", "mapanything.tools.viewer")


def start(*options: str) -> tuple[subprocess.Popen[str], list[str]]:
    """A running viewer and the two lines that it prints."""
    process = subprocess.Popen([*TOOL, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], 60)
    if not readable:
        process.kill()
        pytest.fail("says nothing")
    return process, [process.stdout.readline(), process.stdout.readline()]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_serves_until_it_is_ended(generated_root: Path, number: int, code: int):
    process, lines = start("--root", str(generated_root), "--port", "0")
    try:
        url = lines[0].split()[1]
        with urllib.request.urlopen(url, timeout=30) as page:
            assert page.status == 200
    finally:
        process.send_signal(number)
        out, error = process.communicate(timeout=30)
    assert process.returncode == code
    assert (out, error) == ("", "")
    port = url.rsplit(":", 1)[1]
    assert lines[1].startswith(f"from another machine: ssh -L {port}:localhost:{port} ")


def test_all_interfaces_are_warned_of(generated_root: Path):
    process, lines = start("--root", str(generated_root), "--port", "0", "--host", "0.0.0.0")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert lines[0].startswith("viewer: http://localhost:")
    assert error.startswith("warning: bound to 0.0.0.0") and error.count("\n") == 1
    assert process.returncode == 0


def test_port_in_use_is_one_line_and_code_2(generated_root: Path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        command = [*TOOL, "--root", str(generated_root), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: --port {port}: is in use on 127.0.0.1; end that program or give another port\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--agent", "9"), "no agent '9'"),
        (("--frame", "1"), "no frame '1'"),
        (("--split", "test"), "no split 'test'"),
        (("--predictions", "nowhere"), "no such folder"),
    ],
)
def test_what_is_not_there_is_named(generated_root: Path, options: tuple[str, ...], message: str):
    with pytest.raises(InputError, match=message):
        main(["--root", str(generated_root), *options])


@pytest.mark.parametrize("options", [("--port", "70000"), ("--port", "x"), ("--rrd", "a.txt")])
def test_bad_options_are_argparses(options: tuple[str, ...]):
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2


def test_addresses_can_be_typed_as_they_are():
    assert address_lines("127.0.0.1", 1)[0].split()[1] == address_lines("0.0.0.0", 1)[0].split()[1] == "http://localhost:1"
    assert address_lines("fe80::2", 80)[0].split()[1] == "http://[fe80::2]:80"
    assert "-L 80:10.0.0.3:80 " in address_lines("10.0.0.3", 80)[1]


def test_without_rerun_one_line_says_how_to_get_it(generated_root: Path, tmp_path: Path):
    block = tmp_path / "rerun.py"  # whether it is installed or not
    block.write_text("raise ImportError('not here')")
    command = [*TOOL, "--root", str(generated_root), "--rrd", str(tmp_path / "a.rrd")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "pip install rerun-sdk" in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".rrd"] == []
