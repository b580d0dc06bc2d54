"""Every example runs, and says what it promises."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import guest
from PIL import Image

import camlucida as cl
from camlucida.gap import GAPConv, GAPLinear, small_gap
from camlucida.models import Model

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def test_every_example_is_run_by_a_test() -> None:
    tests = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").glob("test_*.py"))
    names = {p.name for p in EXAMPLES.glob("*.py")}
    assert names >= {"builtin.py", "gap_vs_fc.py", "shapes.py"}
    assert not [name for name in names if f'/ "{name}"' not in tests]


def test_shapes_learns_draws_and_tells_where_the_picture_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "shapes.py"))["main"](str(tmp_path / "a" / "demo.png"), steps=60)
    told = capsys.readouterr().out
    assert f"the picture: {tmp_path / 'a' / 'demo.png'}" in told and "of 200 times" in told
    with Image.open(tmp_path / "a" / "demo.png") as picture:
        assert picture.width > 3 * 224 and picture.height > 5 * 224


def test_supervise_reads_the_shape_where_the_loss_asks_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    found = runpy.run_path(str(EXAMPLES / "supervise.py"))["main"](steps=40)
    alone, asked = found.values()
    assert asked[1] > alone[1] + 0.2 and capsys.readouterr().out.count("evidence inside the shape") == 2


def test_concepts_tells_what_each_speaks_for_and_draws_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guest("skimage")
    look = cl.Preprocess((64, 64), mean=(0.5,) * 3, std=(0.5,) * 3, crop=1.0)
    model = Model(small_gap(6, width=0.25), look, name="stand-in", labels=[f"kind {i}" for i in range(6)]).eval()
    runpy.run_path(str(EXAMPLES / "concepts.py"))["main"](str(tmp_path / "a" / "concepts.png"), model=model, count=3)
    told = capsys.readouterr().out
    assert "3 concepts of 3 pictures" in told and told.count("most in") == 3 and told.count("kind ") == 9
    with Image.open(tmp_path / "a" / "concepts.png") as page:
        assert page.width > 3 * 250


def test_prompts_lights_up_what_each_text_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = runpy.run_path(str(EXAMPLES / "prompts.py"))["main"](str(tmp_path / "a" / "prompts.png"), steps=60)
    assert found["evidence at what is named"] > 2 * found["its area"]
    assert f"the picture: {tmp_path / 'a' / 'prompts.png'}" in capsys.readouterr().out
    with Image.open(tmp_path / "a" / "prompts.png") as picture:
        assert picture.width > 4 * 160 and picture.height > 4 * 160


def test_similarity_shows_what_two_pictures_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = runpy.run_path(str(EXAMPLES / "similarity.py"))["main"](str(tmp_path / "similarity.png"), steps=60)
    assert len(found) == 2 and all(0.15 < share <= 1 for share in found.values())
    assert capsys.readouterr().out.count("evidence at the") == 2 and (tmp_path / "similarity.png").is_file()


def test_caption_asks_for_single_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = runpy.run_path(str(EXAMPLES / "caption.py"))["main"](str(tmp_path / "caption.png"), steps=25)
    assert len(found) == 5 and all(0 <= share <= 1 for share in found.values()) and found["words right"] > 0.3
    assert capsys.readouterr().out.count("on its side") == 4 and (tmp_path / "caption.png").is_file()


# --- examples/builtin.py


def test_builtin_shows_three_photos_and_says_where_it_is_unsure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guest("skimage")
    labels = [f"kind {i}" for i in range(6)]
    look = cl.Preprocess((64, 64), mean=(0.5,) * 3, std=(0.5,) * 3, crop=1.0)
    example = runpy.run_path(str(EXAMPLES / "builtin.py"))
    for bar, doubts in ((1.0, 3), (0.0, 0)):
        model = Model(small_gap(6, width=0.25), look, name="stand-in", labels=labels, confident=bar).eval()
        example["main"](str(tmp_path / "demo.png"), model)
        told = capsys.readouterr().out
        assert told.count("low confidence") == doubts and told.count("kind ") == 3
        assert told.endswith(f"the picture: {tmp_path / 'demo.png'}\n")
    with Image.open(tmp_path / "demo.png") as page:
        assert page.width > 3 * 256 + 5 * 224 and page.height > 3 * 224


def test_without_scikit_image_builtin_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(SystemExit, match=r"camlucida\[demo\]"):
        runpy.run_path(str(EXAMPLES / "builtin.py"))["photos"]()


def test_builtin_lays_pages_side_by_side_and_one_below_the_other() -> None:
    example = runpy.run_path(str(EXAMPLES / "builtin.py"))
    red, blue = Image.new("RGB", (4, 2), "red"), Image.new("RGB", (2, 6), "blue")
    across, down = example["beside"](red, blue), example["below"]([red, blue])
    assert across.size == (6, 6) and across.getpixel((3, 3)) == (255, 0, 0) and across.getpixel((5, 0)) == (0, 0, 255)
    assert down.size == (4, 8) and down.getpixel((3, 1)) == (255, 0, 0) and down.getpixel((1, 7)) == (0, 0, 255)
    assert across.getpixel((0, 0)) == (255, 255, 255) == down.getpixel((0, 7))


# --- examples/gap_vs_fc.py


@pytest.fixture(scope="module")
def duel() -> SimpleNamespace:
    """The names of examples/gap_vs_fc.py, as an object whose ``run`` takes the place of some of them."""
    guest("sklearn")
    guest("matplotlib")
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / "gap_vs_fc.py")))


def reduced(duel: SimpleNamespace, **names: Any) -> SimpleNamespace:
    """The same example with fewer pictures."""
    made = runpy.run_path(str(EXAMPLES / "gap_vs_fc.py"))
    made["main"].__globals__.update({"TRAIN": 50, "TEST": 60, "MOVED": 20, "MAPS": 12, **names})
    return SimpleNamespace(**made)


def chance() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_the_duel_runs_and_writes_what_it_says(
    duel: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reduced(duel).main(str(tmp_path / "out"), seeds=2, epochs=1)
    told = capsys.readouterr().out
    assert told.count("seed ") >= 2 and "10.41" in told and "16.46" in told
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "table.md", "numbers.json", "gap-vs-fc-shift.png", "gap-vs-fc-gap.png", "gap-vs-fc-maps.png"
    }  # fmt: skip
    found = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert found["parameters"] == {n: sum(p.numel() for p in duel.network(n, 0).parameters()) for n in duel.HEADS}
    for run in found["runs"]:
        assert set(run["test"]) == set(duel.HEADS) and len(run["shift"]["FC"]) == len(duel.SHIFTS)
        assert run["share, all"]["chance (area)"] == pytest.approx(16**2 / 40**2)
        assert len(run["share"]) == 2 * 2 + 2 + 3


def test_all_heads_of_a_seed_start_from_one_trunk_and_another_seed_from_another(duel: SimpleNamespace) -> None:
    first, *others = [duel.network(name, 4).features.state_dict() for name in duel.HEADS]
    assert all(torch.equal(first[k], other[k]) for other in others for k in first)
    assert not torch.equal(first["0.weight"], duel.network("FC", 5).features.state_dict()["0.weight"])
    heads = [duel.network(name, 4).head for name in duel.HEADS]
    assert isinstance(heads[2], GAPLinear) and isinstance(heads[3], GAPConv)
    assert not torch.equal(heads[2].linear.weight, heads[3].conv.weight.flatten(1))  # two draws: a control
    assert [m.p for m in heads[1] if isinstance(m, torch.nn.Dropout)] == [0.5, 0.5]


def test_the_two_gap_heads_are_one_function_and_train_alike_from_one_start(duel: SimpleNamespace) -> None:
    x, y = torch.randn(100, 1, 40, 40), torch.arange(100) % 10
    linear, conv = duel.network("GAP + linear", 1), duel.network("1×1 conv + GAP", 1)
    conv.head = GAPConv.from_linear(linear.head)
    trained = [duel.train(net, (x, y), 2, 1e-3, 0) for net in (linear, conv)]
    assert torch.allclose(*(net(x) for net in trained), atol=1e-3)


def test_training_is_repeated_bit_for_bit_and_learns(duel: SimpleNamespace) -> None:
    y = torch.arange(100) % 10
    x = torch.randn(100, 1, 40, 40) * 0.1
    x[torch.arange(100), 0, 4 * y] += 3  # the row says the class
    nets = [duel.train(duel.network("FC", 1), (x, y), 6, 1e-3, 0) for _ in range(2)]
    assert torch.equal(nets[0](x), nets[1](x)) and not nets[0].training
    assert duel.right(nets[0], x, y).float().mean() > 0.9


def test_no_digit_is_learned_and_tested(duel: SimpleNamespace) -> None:
    (pool, pool_y), (test, test_y) = duel.digits()
    assert len(test) == 797 and len(pool) == 1000 and len(pool_y) == 1000 and len(test_y) == 797
    images = {tuple((16 * x.flatten()).round().int().tolist()) for x in pool}
    assert not any(tuple((16 * x.flatten()).round().int().tolist()) in images for x in test)
    again = duel.digits()
    assert torch.equal(again[1][0], test)
    assert len(set(test_y.tolist())) == 10 and pool.min() >= 0 and pool.max() <= 1


def test_the_window_moves_the_digit_by_the_shift_and_the_box_goes_with_it(duel: SimpleNamespace) -> None:
    scene = torch.arange(2 * 64 * 64.0).reshape(2, 1, 64, 64)
    shift = torch.tensor([[5, -3], [-12, 12]])
    seen, inside = duel.window(scene, shift), duel.boxes(shift)
    for i, (down, right) in enumerate(shift.tolist()):
        assert torch.equal(seen[i, 0], scene[i, 0, 12 - down : 52 - down, 12 - right : 52 - right])
        assert torch.equal(seen[i, 0][inside[i]].reshape(16, 16), scene[i, 0, 24:40, 24:40])
        assert inside[i].sum() == 16**2


def test_a_scene_holds_the_digit_whole_and_clutter_all_around(duel: SimpleNamespace) -> None:
    shapes = torch.zeros(40, 1, 16, 16)
    shapes[:, :, 2:14, 4:12] = 1.0
    scene = duel.scenes(shapes, chance())
    middle = scene[:, 0, 24:40, 24:40]
    assert torch.all(middle[:, 2:14, 4:12] > 0.4) and abs(float(middle[:, 2:14, 4:12].mean()) - 1) < 0.02
    quarters = [scene[:, 0, y : y + 20, x : x + 20] for y in (0, 44) for x in (0, 44)]
    assert all(0.05 < float((q > 0.6).float().mean()) < 0.5 for q in quarters)
    assert torch.equal(scene, duel.scenes(shapes, chance()))


def test_shifts_are_as_far_as_they_say(duel: SimpleNamespace) -> None:
    far = duel.moved(200, 6, chance())
    assert set(map(tuple, far.tolist())) == {(-6, 0), (6, 0), (0, -6), (0, 6)}
    near = duel.anywhere(500, chance(), 2)
    assert near.min() == -2 and near.max() == 2 and set(near[:, 0].tolist()) == {-2, -1, 0, 1, 2}


def test_map_quality_counts_what_lies_in_the_box(duel: SimpleNamespace) -> None:
    inside = duel.boxes(torch.tensor([[0, 0], [0, 0], [0, 0], [-12, -12]]))
    heat = torch.zeros(4, 40, 40)
    heat[0, 20, 20] = 1.0  # all in the box
    heat[1, 0, 0], heat[1, 20, 20] = 3.0, 1.0  # a quarter of it, the peak outside
    heat[2] = 1.0  # even; its first place is the peak
    share, hit = duel.quality(heat, inside)  # the last is blank
    assert share.tolist() == pytest.approx([1, 0.25, 0.16, 0]) and hit.tolist() == [1, 0, 0, 0]


def test_a_map_is_of_the_true_class_at_the_last_convolution(duel: SimpleNamespace) -> None:
    x, y = torch.randn(3, 1, 40, 40), torch.tensor([1, 7, 7])
    gap, fc = duel.network("GAP + linear", 0).eval(), duel.network("FC", 0).eval()
    found = duel.maps(gap, x, y)
    assert set(found) == {"CAM"} and set(duel.maps(fc, x, y)) == {"Grad-CAM", "HiResCAM"}
    raw = gap.class_maps(x)[torch.arange(3), y].clamp(min=0)
    peak = torch.nn.functional.interpolate(raw[:, None], (40, 40), mode="bilinear")[:, 0]
    expected = peak / raw.amax((1, 2), keepdim=True).clamp(min=1e-9)
    assert expected[0].max() > 0.5 and expected[2].max() > 0.5  # the other is negative everywhere, and blank
    assert torch.allclose(found["CAM"], expected, atol=1e-4)


def test_the_baselines_know_nothing_of_the_net(duel: SimpleNamespace) -> None:
    shift = torch.tensor([[0, 0], [12, 12]])
    inside, x = duel.boxes(shift), torch.full((2, 1, 40, 40), -1.0)
    x[0, 0, 20, 20], x[1, 0, 0, 0] = 1.0, 1.0
    found = duel.baselines(x, inside)
    assert found["chance (area)"].flatten().tolist() == pytest.approx([0.16] * 4)
    assert found["centre"].tolist() == [pytest.approx([1, (4 / 16) ** 2]), [1, 0]]
    assert found["the picture's ink"].tolist() == [[1, 0], [1, 0]]


def test_intervals_are_students(duel: SimpleNamespace) -> None:
    mean, half = duel.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3 and half == pytest.approx(2.776445 * (2.5 / 5) ** 0.5, rel=1e-5)
    assert duel.interval([1.0])[1] == float("inf")
    assert duel.shown([0.10, 0.12, 0.14], signed=True) == "+12.0 ± 5.0" and duel.shown([-0.1, -0.1]) == "−10.0 ± 0.0"


def test_differences_are_paired_by_seed(duel: SimpleNamespace) -> None:
    def run(base: float) -> dict[str, Any]:
        value = {n: base + i / 10 for i, n in enumerate(duel.HEADS)}
        cams = [f"{n}, {'CAM' if 'GAP' in n else 'Grad-CAM'}" for n in duel.HEADS]
        quality = {n: base for n in cams}
        return {
            "train": {n: 1.0 for n in value}, "test": value, "shift": {n: [v] * 7 for n, v in value.items()},
            "share": quality, "pointing": quality, "share, all": quality, "pointing, all": quality, "answered": 0.5,
        }  # fmt: skip

    text = duel.tables([run(0.1), run(0.5)], {n: 7 for n in duel.HEADS})
    assert duel.measures([run(0.1)])["gap"]["FC"] == [pytest.approx(0.9)]
    row = next(line for line in text.splitlines() if line.startswith("| GAP + linear − FC |")).split("|")
    assert row[3].strip() == "+20.0 ± 0.0"  # the seeds differ by 40 points, the pairs by nothing
    assert row[4].strip() == "−20.0 ± 0.0"


def test_tuning_prints_each_head_at_each_rate(duel: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    small = reduced(duel, RATES=(1e-3, 2e-3))
    x, y = small.digits()[0]
    small.tune((x[:80], y[:80]), epochs=1, seeds=1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["rate", "0.001", "0.002"]
    assert all(0 <= float(v) <= 100 for line in lines[1:] for v in line.split()[1:])


def test_without_scikit_learn_the_duel_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match=r"camlucida\[examples\]"):
        runpy.run_path(str(EXAMPLES / "gap_vs_fc.py"))


def test_the_page_says_what_the_example_does(duel: SimpleNamespace) -> None:
    page = (ROOT / "docs" / "gap-vs-fc.md").read_text(encoding="utf-8")
    for name in duel.HEADS:
        parameters = sum(p.numel() for p in duel.network(name, 0).parameters())
        assert f"| {name} | {parameters:,} |" in page and f"{duel.RATE[name]:g}" in page
    for picture in ("shift", "gap", "maps"):
        file = ROOT / "docs" / "pictures" / f"gap-vs-fc-{picture}.png"
        assert file.name in page and file.stat().st_size <= 80_000
