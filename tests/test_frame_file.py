"""Frames files: named by their content, read frame by frame, and refused where they are altered."""

import numpy as np
import pytest
import test_activation
from fuzz import campaign
from safetensors.numpy import load_file, save_file
from test_activation import INPUTS, NAMES, code, draw, find, moment, update

from solar import cli, frame_store
from solar.adapters import directory
from solar.codec import container, frame_file, packet
from solar.codec.container import PacketError
from solar.codec.factors import Factors, relative_error
from solar.errors import SolarError

base, frames = test_activation.base, test_activation.frames  # fixtures


def test_a_frames_file_comes_back_and_is_named_by_its_content(tmp_path, frames):
    path = frame_file.write(tmp_path / "own.frames", frames)
    again = frame_file.read(path)
    assert again.hash == frames.hash and again.layers == frames.layers
    for one, other in zip(frames.frames, again.frames, strict=True):
        assert (one.rows == other.rows).all() and (one.powers == other.powers).all()
    assert frames._replace(about={"text": "another"}).hash == frames.hash
    changed = frames.frames[0]._replace(powers=frames.frames[0].powers + 1)
    assert frames._replace(frames=(changed, *frames.frames[1:])).hash != frames.hash


def test_damaged_frames_are_refused(tmp_path, frames):
    path = tmp_path / "own.frames"
    data = frame_file.write(path, frames).read_bytes()
    for broken in (b"", data[:100], data[:-1], b"x" + data[1:]):
        path.write_bytes(broken)
        with pytest.raises(SolarError, match="frames"):
            frame_file.read(path)
    with pytest.raises(SolarError, match="cannot read"):
        frame_file.read(tmp_path / "none.frames")


def altered(path, part, change):
    """The file with one of its tensors changed in place, marks and all else as they were."""
    tensors = load_file(path)
    tensors[part] = np.ascontiguousarray(change(tensors[part].copy()))
    save_file(tensors, path)


def one_more(tensor):
    tensor.flat[3] ^= 1
    return tensor


@pytest.mark.parametrize("part", ["rows.2", "powers.2", "rows.7", "powers.7"])
@pytest.mark.parametrize("change", [one_more, lambda x: x.astype(np.int32), lambda x: x[:-1]])
def test_an_altered_frame_is_refused_where_it_is_needed(tmp_path, base, frames, part, change):
    """The name of the file is unmoved, so the packet finds it: the frame itself must not pass."""
    data = code(base, frames, 1500).data
    path = frame_file.write(tmp_path / "own.frames", frames)
    altered(path, part, change)
    own = frame_file.read(path)
    assert own.hash == frames.hash
    with pytest.raises(PacketError, match=f"own.frames are damaged in number {part[-1]}"):
        packet.decode(data, base, frames=find(own))
    with pytest.raises(SolarError, match=f"own.frames are damaged in number {part[-1]}"):
        code(base, own, 1500)
    # Layer 1 has frames 0 and 5: what is wrong elsewhere does not matter to it.
    some = {NAMES[1]: update()[NAMES[1]]}
    alone = packet.decode(code(base, own, 800, some).data, base,
                          frames=find(own), usual_names=NAMES[1:2])  # fmt: skip
    assert alone.factors[NAMES[1]].left.shape[1] > 0


def test_an_altered_mark_or_table_is_another_file(tmp_path, base, frames):
    data = code(base, frames, 1500).data
    for part in ("marks", "layers"):
        path = frame_file.write(tmp_path / f"{part}.frames", frames)

        def change(tensor, part=part):
            if part == "marks":
                return one_more(tensor)
            text = tensor.tobytes().replace(b"[0,4,", b"[1,4,")
            assert text != tensor.tobytes()
            return np.frombuffer(text, np.uint8)

        altered(path, part, change)
        own = frame_file.read(path)
        assert own.hash != frames.hash
        with pytest.raises(PacketError, match="needs the frames"):
            packet.decode(data, base, frames=lambda _, own=own: own)


def test_tables_that_do_not_fit_their_file_are_refused(tmp_path, frames):
    for part, change in (
        ("marks", lambda x: x[:-1]),
        ("marks", lambda x: x[:, :-1]),
        ("marks", lambda x: x.astype(np.int32)),
        ("marks", lambda x: np.zeros((10**12, 0), np.uint8)),  # no bytes, and a claim of many
        ("layers", lambda x: np.frombuffer(b'{"about":' + b"[" * 10**5 + b"]" * 10**5, np.uint8)),
        ("layers", lambda x: np.frombuffer(x.tobytes().replace(b"[0,4,", b"[0,99,"), np.uint8)),
        ("layers", lambda x: x[:-1]),
    ):
        path = frame_file.write(tmp_path / "own.frames", frames)
        altered(path, part, change)
        with pytest.raises(SolarError, match="frames"):
            frame_file.read(path)


def test_a_frame_without_directions_is_a_frame(base, frames):
    """What a weight of one row has: all that is known is how large inputs or gradients are."""
    plain = tuple(f._replace(rows=f.rows[:0], powers=f.powers[-1:]) for f in frames.frames)
    own = frames._replace(frames=plain)
    coded = code(base, own, 3000)
    decoded = packet.decode(coded.data, base, frames=find(own)).factors
    assert relative_error(update(), decoded) < 0.8
    assert frame_file.quantised(np.array([[2.0]]), 16).rows.shape == (0, 1)


def test_an_output_head_has_no_frames_and_nothing_is_measured_for_it(monkeypatch):
    weights = {"layers.0.q": np.ones((4, 6), np.float32), "lm_head": np.ones((9, 6), np.float32)}
    monkeypatch.setattr(frame_store, "made", None)
    with pytest.raises(SolarError, match="lm_head is in none of the base's blocks.*weights"):
        frame_store.for_base(None, "nowhere", weights, container.identify(weights, weights))


def test_a_frame_is_read_when_it_is_asked_for(tmp_path, frames):
    own = frame_file.read(frame_file.write(tmp_path / "own.frames", frames))
    assert own.frames[1] is own.frames[1] and len(own.frames) == len(frames.frames)
    with pytest.raises(IndexError):
        own.frames[len(frames.frames)]


def test_a_frame_does_not_notice_rounding_of_its_moment():
    own = moment(3)
    for seed in range(20):
        noise = 1 + 1e-12 * draw(seed).standard_normal(own.shape)
        near = frame_file.quantised(own * noise, 32)
        assert (near.rows == frame_file.quantised(own, 32).rows).all()


@pytest.mark.parametrize("power", [0.5, 0.7, 1.0])
def test_a_softened_frame_has_the_same_directions_and_energy(frames, power):
    for own in frames.frames:
        soft = frame_file.softened(own, power)
        counts = np.append(np.ones(len(own.rows)), own.rows.shape[1] - len(own.rows))
        energies = [counts @ 2.0 ** (x.powers / frame_file.OCTAVE) for x in (own, soft)]
        assert (soft.rows == own.rows).all() and soft.powers.dtype == np.int16
        assert abs(np.log2(energies[1] / energies[0])) < 0.5 / frame_file.OCTAVE
        assert np.abs(np.diff(soft.powers) - power * np.diff(own.powers)).max() <= 1
        assert power < 1 or (soft.powers == own.powers).all()


def test_sharpness_is_how_far_the_mean_is_above_the_geometric_one():
    own = frame_file.Frame(np.ones((1, 2), np.int8), np.array([16, 0], np.int16))  # 16 and 1
    assert frame_file.sharpness(own) == pytest.approx(np.log2(8.5) - np.log2(4))
    logs = np.random.default_rng(0).normal(0, 8, 200)
    many = frame_file.Frame(np.ones((199, 200), np.int8), np.round(logs).astype(np.int16))
    half = frame_file.sharpness(frame_file.softened(many, 0.5))
    assert half == pytest.approx(frame_file.sharpness(many) / 4, rel=0.15)


def test_the_profile_is_a_share_of_energy(frames):
    for frame in frames.frames[:4]:
        for slope in (0, 16, 20):
            share = 2.0 ** (frame_file.profile(frame, slope) / frame_file.OCTAVE)
            assert share.shape == (INPUTS,) and 0.8 < share.sum() < 1.25
        assert np.ptp(frame_file.profile(frame, 0)) == 0


def test_frames_in_the_cache_are_those_of_the_same_weights(tmp_path, monkeypatch, base, frames):
    """Two bases that differ only in a layer that an adapter changes do not share frames."""
    monkeypatch.setenv("SOLAR_CACHE", str(tmp_path))
    assert frame_store.known(base, container.identify(base, NAMES)) is None
    frame_store.keep(frames, base)
    assert frame_store.known(base, container.identify(base, NAMES)).hash == frames.hash
    assert frame_store.by_hash(frames.hash).hash == frames.hash
    moved = dict(base) | {NAMES[2]: base[NAMES[2]] + 1e-3}
    assert frame_store.known(moved, container.identify(moved, NAMES)) is None
    assert frame_store.known(moved, container.identify(moved, NAMES[3:])).hash == frames.hash
    altered(next((tmp_path / "frames").glob("*.frames")), "rows.5", one_more)
    assert frame_store.known(base, container.identify(base, NAMES[2:])) is not None
    assert frame_store.known(base, container.identify(base, NAMES)) is None  # so it is made again


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return campaign.bench(tmp_path_factory.mktemp("frames"))


def test_a_damaged_frames_file_never_decodes_to_something_else(bench, tmp_path, capsys):
    """Bits turned, bytes cut or exchanged: one line and exit status 2, or the same update."""
    whole, drawn, refused = bench.frames.read_bytes(), draw(8), 0
    path, packed = tmp_path / "own.frames", tmp_path / "own.solar"
    packed.write_bytes(bench.seeds["activation"].data)
    empty = tmp_path / "cache"
    for i in range(150):
        data = bytearray(whole)
        place, other = drawn.integers(0, len(data), 2)
        if i % 3 == 0:
            data[place] ^= 1 << int(drawn.integers(8))
        elif i % 3 == 1:
            data[place : place + 8], data[other : other + 8] = (
                data[other : other + 8], data[place : place + 8]
            )  # fmt: skip
        else:
            del data[place : place + int(drawn.integers(1, 9))]
        path.write_bytes(data)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SOLAR_CACHE", str(empty))
            out = tmp_path / f"out{i}"
            status = cli.main(["expand", str(packed), "--base", str(bench.base),
                               "--frames", str(path), "--out", str(out)])  # fmt: skip
        said = capsys.readouterr().err.strip()
        if status == 0:
            found = directory.read(out).pairs
            product = {k: Factors(b, a.T) for k, (b, a, _) in found.items()}
            truth = {k: bench.seeds["activation"].factors[k] for k in product}
            assert relative_error(truth, product) < 1e-6
            continue
        assert status == 2 and said and "\n" not in said and not out.exists()
        refused += 1
    assert 100 < refused < 150


@pytest.mark.real  # processes that measure the frames of a base anew, one after another
def test_a_file_is_read_alike_with_frames_that_another_process_measured(
    tmp_path, monkeypatch, capsys
):
    from benchmarks import frames_elsewhere

    monkeypatch.setenv("SOLAR_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    given = ["tiny=true", "model=tiny-gpt2", "task=synthetic_text"]
    rows = ["another process", "one XLA thread", "JAX x64"]
    assert frames_elsewhere.main([*given, "--bytes", "400", "--rows", *rows]) == 0
    out = capsys.readouterr().out
    assert all(row in out for row in rows) and "FAULT" not in out and "refused" not in out
