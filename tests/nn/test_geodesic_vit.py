"""`GeodesicViT`: images and patches are one thing, its layers attend by its metric, and it learns."""

import pytest
import torch
from torch.nn import functional as F

import aatc
from aatc.errors import ScoreError, ShapeError
from aatc.nn import GeodesicViT
from tests.nn.agreement import assert_compiled_alike


def made(metric="lorentz", **options):
    torch.manual_seed(1)
    return GeodesicViT(8, 4, 3, 10, 16, 2, 2, metric, **options)


def test_patches_are_the_squares_of_the_image_row_by_row():
    images = torch.randn(2, 3, 8, 8)
    patches = made().patches(images)
    assert patches.shape == (2, 4, 48)
    torch.testing.assert_close(patches[:, 1], images[:, :, :4, 4:].flatten(1))
    torch.testing.assert_close(patches[:, 2], images[:, :, 4:, :4].flatten(1))


def test_images_and_their_patches_give_the_same():
    model, images = made(), torch.randn(2, 3, 8, 8)
    assert model(images).shape == (2, 10)
    assert model.process_image(images).shape == (2, 4, 16)
    torch.testing.assert_close(model(model.patches(images)), model(images))
    torch.testing.assert_close(model.head(model.flow_information(model.tokens(images)).mean(1)), model(images))


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_patch_metric_makes_the_weights_of_its_layer(layer):
    model, images = made(), torch.randn(2, 3, 8, 8)
    distances = model.patch_metric(images, layer)
    x = model.tokens(images)
    if layer:
        x = model.layers[0](x, model.positions)
    seen = model.layers[layer]
    attention, x = seen.attention, seen.before(x)
    values = attention.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)[2]
    weights = (-attention.metric.scale()[:, None, None] * distances).softmax(-1)
    want = attention.out((weights @ values).transpose(1, 2).flatten(-2))
    torch.testing.assert_close(attention(x, positions=model.positions), want, rtol=2e-5, atol=2e-5)
    assert (distances >= 0).all()


@pytest.mark.parametrize(
    ("metric", "connection"), [("lorentz", "rotary"), ("fisher-rao", None), ("sphere", "transport")]
)
def test_it_compiles_without_fallback(metric, connection):
    assert_compiled_alike(made(metric, connection=connection), torch.randn(2, 3, 8, 8), attentions=2)


def test_an_export_computes_what_the_model_computes():
    model, images = made().eval(), torch.randn(2, 3, 8, 8)
    module = aatc.export(model, (images,))
    state = {n.replace(".", "_"): t for n, t in (*model.named_parameters(), *model.named_buffers())}
    values = [state[a.name] for a in module.entry.args[:-1]]
    torch.testing.assert_close(aatc.run(module, *values, images), model(images), rtol=2e-5, atol=2e-5)
    assert sum(op.name == "geo.metric" for op in module.walk()) == 2
    assert aatc.parse(str(module)) == module


def test_state_dict_makes_the_same_model():
    source, images = made(), torch.randn(2, 3, 8, 8)
    torch.manual_seed(2)
    other = GeodesicViT(8, 4, 3, 10, 16, 2, 2)
    assert not torch.equal(source(images), other(images))
    other.load_state_dict(source.state_dict())
    assert torch.equal(source(images), other(images))


def test_dropout_acts_while_training_only():
    model, images = made(dropout=0.3), torch.randn(2, 3, 8, 8)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="8 pixels a side cannot be cut into patches of 3"):
        GeodesicViT(8, 3, 1, 10, 16, 1, 2)
    with pytest.raises(ShapeError, match="16 features cannot be shared by 3 heads"):
        GeodesicViT(8, 2, 1, 10, 16, 1, 3)
    with pytest.raises(ShapeError, match="multiple of 4"):
        GeodesicViT(8, 2, 1, 10, 12, 1, 2)
    for layer in (-5, 4):
        with pytest.raises(ShapeError, match=f"there is no layer {layer}"):
            made().patch_metric(torch.randn(2, 3, 8, 8), layer)
    with pytest.raises(ShapeError, match="depth is 0"):
        GeodesicViT(8, 2, 1, 10, 16, 0, 2)
    with pytest.raises(ScoreError, match="there is no metric 'minkowski'"):
        GeodesicViT(8, 2, 1, 10, 16, 1, 2, "minkowski")
    with pytest.raises(ShapeError, match=r"images are \(batch, 3, 8, 8\), patches \(batch, 4, 48\)"):
        made()(torch.randn(2, 1, 8, 8))


def test_compiled_it_learns_digits(one_thread):
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (torch.tensor(digits.images, dtype=torch.float32) / 8 - 1)[:, None]
    labels = torch.tensor(digits.target)
    model = GeodesicViT(8, 2, 1, 10, 32, 1, 4)
    run = aatc.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=3 * 21)
    losses = []
    for batch in torch.cat([torch.randperm(1344) for _ in range(3)]).split(64):
        loss = F.cross_entropy(run(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        right = model(images[1344:]).argmax(-1) == labels[1344:]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert right.float().mean() > 0.6
    assert not run.explain().fallbacks
