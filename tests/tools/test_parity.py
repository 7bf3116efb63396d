"""The parity tool: it passes on upstream's numbers, and it can fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mapanything.errors import InputError
from mapanything.models.parity import deviation
from mapanything.tools import parity

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity"
CPU = torch.device("cpu")


def test_network_computes_what_upstream_does():
    rows = parity.check_file(FIXTURES / "network.pt", CPU)
    assert len(rows) > 70
    assert {name.split("/")[0] for name, *_ in rows} == {"v1_1_small", "v1_small"}
    assert [row for row in rows if not row.fine] == []


def test_a_wrong_number_is_named_and_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    content = torch.load(FIXTURES / "network.pt", weights_only=True)
    del content["v1_small"]
    cases = content["v1_1_small"]["cases"]
    del cases["intr_depth_2v_42x56"]
    conf = cases["pose_3v_42x56"]["forward"][2]["conf"]
    conf[0, 3, 5] += 3e-4 * conf.max()
    mask = cases["pose_3v_42x56"]["infer"][1]["mask"]
    mask[0, :1] = ~mask[0, :1]
    torch.save(content, tmp_path / "spoilt.pt")
    monkeypatch.setattr("sys.argv", ["parity", str(tmp_path / "spoilt.pt")])
    assert parity.main() == 1
    far = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  FAR")]
    assert len(far) == 2
    assert "pose_3v_42x56 forward view 2 conf" in far[0] and "pose_3v_42x56 infer view 1 mask" in far[1]


def test_nan_is_far():
    assert not deviation("conf", "", torch.full((2,), torch.nan), torch.ones(2)).fine
    assert not deviation("conf", "", torch.ones(3), torch.ones(2)).fine


@pytest.mark.parametrize("content", [b"", b"not a file of torch", None])
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: bytes | None):
    path = tmp_path / "other.pt"
    if content is None:
        torch.save({"model": {"weight": torch.ones(2)}}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"other\.pt"):
        parity.check_file(path, CPU)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["parity", "x.pt", "--device", "warp"])
    with pytest.raises(InputError, match="--device warp"):
        parity.main()
