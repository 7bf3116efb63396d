"""The network: what it promises beyond its values (those: test_against_reference.py, test_parity.py)."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mapanything.errors import InputError
from mapanything.models import heads
from mapanything.models.config import ModelConfig
from mapanything.models.encoder import DinoV2
from mapanything.models.heads import DPTFeatures, DPTRegressor, dense_bytes_per_view, rows_at_once
from mapanything.models.layers import Activated, Block, activated, compile_blocks, scaled
from mapanything.models.mapanything import MapAnything
from tests.helpers.networks import TINY, V1, V1_1

# TFLOP of one forward at 518×392, images only, upstream's, and of its two dense encoders per view (docs/network.md §12).
UPSTREAM_TFLOP = {
    "v1.1": {1: 2.989039, 2: 6.083337, 4: 12.589073, 8: 26.869101, 12: 42.840539, 20: 79.857641},
    "v1": {1: 1.534207, 2: 3.147373, 4: 6.611102, 8: 14.488144, 12: 23.631298, 20: 45.715939},
}
# A view's share of what is saved by the 1×1 convolutions coming before the doublings; the position embedding's resize, once.
DOUBLING_TFLOP = 0.75 * 2 * 256**2 * (28 * 38 + 56 * 74 + 112 * 148 + 224 * 296) / 1e12
RESIZE_TFLOP = {"v1.1": 4 * 28 * 37 * 37 * 1536 / 1e12, "v1": 4 * 28 * 37 * 37 * 1024 / 1e12}
SKIPPED_TFLOP = {"v1.1": 0.065911 + 0.061613, "v1": 0.064825 + 0.060526}
AUGMENTED = {
    "overall_prob": 0.9,
    "dropout_prob": 0.05,
    "ray_dirs_prob": 0.5,
    "depth_prob": 0.5,
    "cam_prob": 0.5,
    "sparse_depth_prob": 0.5,
    "sparsification_removal_percent": 0.9,
    "depth_scale_norm_all_prob": 0.05,
    "pose_scale_norm_all_prob": 0.05,
}


def images(num_views: int, batch: int = 1, height: int = 28, width: int = 42, device: str = "cpu") -> list[dict]:
    generator = torch.Generator().manual_seed(num_views + 10 * batch)
    return [
        {"img": torch.randn(batch, 3, height, width, generator=generator).to(device), "data_norm_type": ["dinov2"]}
        for _ in range(num_views)
    ]


def everything(num_views: int, batch: int = 1, device: str = "cpu") -> list[dict]:
    """Views with every geometric input, as `forward` takes them."""
    views = images(num_views, batch, device=device)
    generator = torch.Generator().manual_seed(1)
    for view in views:
        *_, height, width = view["img"].shape
        rays = torch.randn(batch, height, width, 3, generator=generator)
        view["ray_directions_cam"] = (rays / rays.norm(dim=-1, keepdim=True)).to(device)
        view["depth_along_ray"] = torch.rand(batch, height, width, 1, generator=generator).to(device) * 9 + 1
        quats = torch.randn(batch, 4, generator=generator)
        view["camera_pose_quats"] = (quats / quats.norm(dim=-1, keepdim=True)).to(device)
        view["camera_pose_trans"] = torch.randn(batch, 3, generator=generator).to(device)
        view["is_metric_scale"] = torch.ones(batch, dtype=torch.bool, device=device)
    return views


def tiny(**geometric_inputs) -> MapAnything:
    torch.manual_seed(0)
    config = replace(TINY, geometric_inputs=replace(TINY.geometric_inputs, **geometric_inputs))
    return MapAnything(config).eval()


class Calls(TorchDispatchMode):
    """Counts calls into ATen."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


class LiveBytes(TorchDispatchMode):
    """The most bytes of results that were alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.seen:
                    self.seen.add(storage.data_ptr())
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.gone, storage.data_ptr(), storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def gone(self, pointer: int, size: int) -> None:
        self.seen.discard(pointer)
        self.now -= size


@pytest.mark.parametrize(("name", "config"), [("v1.1", V1_1), ("v1", V1)])
def test_work_is_upstreams_without_the_encoders_that_have_nothing_to_encode(name: str, config: ModelConfig):
    with torch.device("meta"):
        model = MapAnything(config)
    for num_views, upstream in UPSTREAM_TFLOP[name].items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(images(num_views, height=392, width=518, device="meta"))
        expected = upstream - num_views * (SKIPPED_TFLOP[name] + DOUBLING_TFLOP) + RESIZE_TFLOP[name]
        assert counter.get_total_flops() / 1e12 == pytest.approx(expected, rel=1e-4)


def test_calls_do_not_grow_with_the_views():
    with torch.device("meta"):
        model = MapAnything(V1_1)
    counts = []
    for num_views in (2, 24):
        with Calls() as calls, torch.no_grad():
            model(images(num_views, height=392, width=518, device="meta"))
        counts.append(calls.count)
    assert counts[1] <= 1.5 * counts[0]


@pytest.mark.parametrize("prepare", [images, everything])
def test_nothing_in_forward_waits_for_a_number(prepare):
    """On the meta device there are no numbers: reading one, or a shape that depends on one, is an error."""
    with torch.device("meta"):
        model = tiny(**AUGMENTED)
    views = prepare(3, batch=2, device="meta")
    assert model(views)[2]["pts3d"].shape == (2, 28, 42, 3)


def test_batches_and_views_do_not_mix():
    model = tiny()
    views = images(3, batch=2)
    together = model(views)
    for sample in range(2):
        alone = model([{**view, "img": view["img"][sample : sample + 1]} for view in views])
        for a, b in zip(together, alone, strict=True):
            for key in ("pts3d", "conf", "cam_trans", "cam_quats", "metric_scaling_factor"):
                assert torch.allclose(a[key][sample : sample + 1], b[key], rtol=1e-3, atol=1e-5)


def test_checkpointing_and_chunks_change_no_value():
    torch.manual_seed(0)
    views = everything(2, batch=2)
    config = replace(TINY, geometric_inputs=replace(TINY.geometric_inputs, **{**AUGMENTED, "dropout_prob": 0.0}))
    model = MapAnything(config).train()
    on = replace(
        config,
        encoder=replace(config.encoder, gradient_checkpointing=True),
        multiview=replace(config.multiview, gradient_checkpointing=True),
        heads=replace(config.heads, gradient_checkpointing=True),
    )
    checkpointed = MapAnything(on).train()
    checkpointed.load_state_dict(model.state_dict())
    grads = []
    for network in (model, checkpointed):
        torch.manual_seed(1)
        outputs = network(views)
        losses = [(o["pts3d"] * o["conf"][..., None]).mean() + o["cam_quats"].sum() for o in outputs]
        torch.stack(losses).sum().backward()
        grads.append({k: p.grad for k, p in network.named_parameters()})
    assert any(g is not None for g in grads[0].values())
    for key, grad in grads[0].items():
        other = grads[1][key]
        assert (grad is None) == (other is None), key
        if grad is not None:
            assert torch.allclose(grad, other, rtol=1e-3, atol=1e-6 * max(1.0, float(grad.abs().max()))), key
    with torch.no_grad():
        torch.manual_seed(1)
        whole = model.stacked(views)
        torch.manual_seed(1)
        parts = model.stacked(views, num_rows=3)
    assert torch.allclose(whole.pts3d, parts.pts3d, rtol=1e-4, atol=1e-5)


def test_checkpointing_keeps_fewer_tensors():
    def saved(model: MapAnything) -> int:
        total = 0

        def count(x: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += x.numel() if not isinstance(x, torch.nn.Parameter) else 0
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            model(images(2))
        return total

    plain = saved(MapAnything(TINY).train())
    for part in ("encoder", "multiview", "heads"):
        config = replace(TINY, **{part: replace(getattr(TINY, part), gradient_checkpointing=True)})
        assert saved(MapAnything(config).train()) < 0.95 * plain, part


def test_forward_sees_geometry_only_as_often_as_it_is_told():
    """Images only is the default: the views' geometry changes nothing, and no random number is drawn."""
    model = tiny()
    state = torch.get_rng_state()
    plain, offered = model(images(3)), model(everything(3))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(plain, offered, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    seeing = tiny(overall_prob=1.0, dropout_prob=0.0, ray_dirs_prob=1.0, depth_prob=1.0, cam_prob=1.0)
    assert not torch.allclose(seeing(everything(3))[1]["pts3d"], plain[1]["pts3d"], rtol=1e-3)


def test_a_mask_of_zero_hides_broken_numbers():
    """Unselected numbers must not reach the result even as NaN · 0."""
    model = tiny(overall_prob=1.0, dropout_prob=1 - 1e-12, ray_dirs_prob=1.0, depth_prob=1.0, cam_prob=1.0)
    views = everything(3)
    for key in ("ray_directions_cam", "depth_along_ray"):
        views[1][key] = torch.full_like(views[1][key], torch.nan)
    assert all(view["pts3d"].isfinite().all() for view in model(views))


def test_poses_without_view_0s_are_refused():
    model = tiny(overall_prob=1.0, dropout_prob=0.0, cam_prob=1.0)
    views = everything(3)
    del views[0]["camera_pose_quats"], views[0]["camera_pose_trans"]
    with pytest.raises(ValueError, match="view 0, key camera_pose_quats"):
        model(views)


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "fp32")])
def test_precision_is_what_was_asked_for(dtype: torch.dtype, name: str):
    model = tiny()
    seen, heads = [], []
    qkv = model.get_submodule("info_sharing.self_attention_blocks.0.attn.qkv")
    qkv.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    model.dense_head.register_forward_hook(lambda m, i, o: heads.append(o.dtype))
    outputs = model.infer(images(2), amp_dtype=name)
    assert set(seen) == {dtype} and set(heads) == {torch.float32}
    assert outputs[0]["pts3d"].dtype == torch.float32


@pytest.mark.parametrize("gated", [True, False])
def test_activation_that_is_computed_again_has_the_same_value_and_gradient(gated: bool):
    torch.manual_seed(0)
    linear = torch.nn.Linear(4, 5).double()
    hidden = torch.randn(2, 3, 8 if gated else 4, dtype=torch.double, requires_grad=True)
    scale = torch.rand(5, dtype=torch.double, requires_grad=True)
    plain = F.silu(hidden[..., :4]) * hidden[..., 4:] if gated else F.gelu(hidden)
    torch.testing.assert_close(activated(hidden, linear, scale, gated), linear(plain) * scale)
    assert torch.autograd.gradcheck(lambda h, s: activated(h, linear, s, gated), (hidden, scale))
    assert torch.autograd.gradcheck(lambda w: Activated.apply(hidden, w, linear.bias, gated), (linear.weight,))
    for parameter in linear.parameters():  # frozen
        parameter.requires_grad_(False)
    activated(hidden, linear, None, gated).sum().backward()
    assert hidden.grad is not None and linear.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_layer_scale_in_the_weights_is_layer_scale_on_the_tokens(dtype: torch.dtype):
    torch.manual_seed(0)
    linear, x, scale = torch.nn.Linear(64, 32).to(dtype), torch.randn(2, 5, 64).to(dtype), torch.full((32,), 1e-3).to(dtype)
    exact = F.linear(x.double(), linear.weight.double(), linear.bias.double()) * scale.double()
    error = (scaled(x, linear, scale).double() - exact).abs().max() / exact.abs().max()
    assert error < {torch.float32: 1e-6, torch.float16: 2e-3}[dtype]  # in fp16, weights times 1e-3 would lose three digits
    assert scaled(x, linear, None).equal(linear(x))


@pytest.mark.parametrize("config", [TINY, replace(TINY, encoder=replace(TINY.encoder, ffn="mlp", final_norm=True))])
def test_weights_kept_in_bf16_change_no_bit(config: ModelConfig):
    torch.manual_seed(0)
    model = MapAnything(config).eval()
    views = everything(3)
    seen = [{k: v for k, v in view.items() if k in ("img", "data_norm_type")} for view in views]
    before = model.infer(seen)
    size = sum(p.nbytes for p in model.parameters())
    after = model.keep_bf16().infer(seen)
    assert sum(p.nbytes for p in model.parameters()) < 0.95 * size
    for a, b in zip(before, after, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a if isinstance(a[key], torch.Tensor))
    for use_amp, dtype in ((False, "bf16"), (True, "fp16")):
        with pytest.raises(InputError, match="give amp_dtype=bf16, or load them again"):
            model.infer(seen, use_amp=use_amp, amp_dtype=dtype)


@pytest.mark.parametrize(("h", "w"), [(18, 32), (37, 28), (37, 37), (3, 50)])
def test_positions_are_torchs_bicubic_resize(h: int, w: int):
    config = replace(TINY.encoder, pos_grid=37)
    encoder = DinoV2(config)
    grid = encoder.pos_embed[:, 1:].view(1, 37, 37, -1).permute(0, 3, 1, 2)
    plain = F.interpolate(grid, scale_factor=((h + 0.1) / 37, (w + 0.1) / 37), mode="bicubic")
    plain = torch.cat([encoder.pos_embed[:, :1], plain.flatten(2).transpose(1, 2)], 1)
    ours = encoder.positions(h, w)
    if (h, w) != (37, 37):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-7)
    grads = [torch.autograd.grad((x * torch.arange(x.shape[1])[:, None]).sum(), encoder.pos_embed)[0] for x in (ours, plain)]
    if (h, w) != (37, 37):
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-3)


def test_bf16_is_near_fp32():
    model = tiny()
    exact, rounded = (model.infer(images(3), use_amp=on, apply_mask=False) for on in (False, True))
    for a, b in zip(exact, rounded, strict=True):
        assert (a["depth_along_ray"] - b["depth_along_ray"]).abs().median() / a["depth_along_ray"].median() < 0.02


def test_compiled_blocks_give_the_same_for_any_number_of_views():
    model = tiny()
    plain = [model(images(n))[0]["pts3d"] for n in (2, 3, 5)]
    blocks = compile_blocks(model)
    assert blocks == sum(isinstance(m, Block) for m in model.modules())
    torch._dynamo.reset()
    for n, expected in zip((2, 3, 5), plain, strict=True):
        assert torch.allclose(model(images(n))[0]["pts3d"], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "dim"), [(518, 518, 256), (14, 14, 256), (2800, 2800, 256), (518, 518, 10_000)])
def test_no_map_of_the_dense_head_is_too_large_to_count(monkeypatch: pytest.MonkeyPatch, height: int, width: int, dim: int):
    monkeypatch.setattr(heads, "PIXELS_AT_ONCE", 10**12)  # a card of the future
    rows = rows_at_once(height, width, dim, free_bytes=10**15)
    largest = max(dim * (height * 8 // 14) * (width * 8 // 14), dim // 2 * height * width)
    assert rows * largest < 2**31 <= (rows + 1.1) * largest


def test_an_image_that_is_too_large_to_count_is_refused():
    with pytest.raises(InputError, match=r"images of 5600×5600 pixels are too large for the dense head; make them smaller"):
        rows_at_once(5600, 5600, 256)


def test_a_hundred_views_reach_the_dense_head_in_parts():
    """The bilinear doubling of 100 maps of 256 × 296 × 296 is more than CUDA's operator can count."""
    with torch.device("meta"):
        model = MapAnything(V1_1)
    seen = []
    model.dense_head.register_forward_hook(lambda _module, maps, _out: seen.append(maps[0][0].shape[0]))
    with torch.no_grad():
        model(images(100, height=518, width=518, device="meta"))
    assert seen == [4] * 25
    seen.clear()
    with torch.no_grad():
        model(images(10, height=252, width=448, device="meta"))
    assert seen == [10]


def test_dense_head_takes_as_many_views_as_memory_is_free_for(monkeypatch: pytest.MonkeyPatch):
    assert heads.free_bytes(torch.device("cpu")) is None
    card = torch.device("cuda")
    for name, value in (
        ("mem_get_info", (8 * 10**9, 24 * 10**9)),
        ("memory_reserved", 5 * 10**9),
        ("memory_allocated", 3 * 10**9),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    assert heads.free_bytes(card) == 10 * 10**9
    need = dense_bytes_per_view(518, 518, 256)
    assert rows_at_once(518, 518, 256, free_bytes=3 * need) == 2
    assert rows_at_once(518, 518, 256, free_bytes=0) == 1


def test_estimate_of_the_dense_heads_memory_is_from_above_and_near():
    """Live bytes of the real head, counted tensor by tensor."""
    head = DPTFeatures((96,) * 4, 64, (12, 16, 24, 40)), DPTRegressor(64)
    maps = [torch.randn(1, 96, 10, 12).contiguous(memory_format=torch.channels_last) for _ in range(4)]
    with torch.no_grad(), LiveBytes() as live:
        head[1](head[0](maps))
    estimate = dense_bytes_per_view(140, 168, 64)
    assert live.peak <= estimate <= 2.5 * live.peak
