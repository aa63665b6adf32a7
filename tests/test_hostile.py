"""Packets from strangers: refused in one line or decoded, whatever their bytes; nothing is written
but an adapter. `make fuzz` does the same for longer."""

import json
import os
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from fuzz import broken, campaign, mutate, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from solar import api
from solar.adapters import peft_io
from solar.codec import coefficients, container, guard, packet
from solar.codec.container import PacketError
from solar.codec.encode import encode
from solar.codec.factors import relative_error
from solar.codec.recipe import Recipe, Setting
from solar.errors import SolarError

EXAMPLES = int(os.environ.get("SOLAR_FUZZ_EXAMPLES", 150))
CASES = broken.cases()


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return campaign.bench(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


# -------------------------------------------------------------------------------------- campaigns


def test_seeds_cover_what_the_codec_writes(bench):
    said = [packet.inspect(seed.data) for seed in bench.seeds.values()]
    for field, values in (
        ("method", {"solar", "float", "bits", "activation"}),
        ("dtype", {"float16", "float32", "int8", "int4", "int2", "sign", "entropy"}),
        ("atoms", {"vector", "matrix"}),
        ("bits", {8, 4, 2, 1}),
        ("embedded", {True, False}),
    ):
        assert {header[field] for header in said if field in header} == values
    kinds = {header["recipe"]["kind"] for header in said if "recipe" in header}
    assert kinds == {"singular", "random", "orthogonal"}
    assert any(header["names"] for header in said) and any(header["heads"] for header in said)
    assert {header["keep"] for header in said if "keep" in header} >= {None, "budget", 9}
    # They lie in the repository: what earlier versions wrote still decodes to the same.
    truth = seeds.update(bench.weights, bench.names, (seeds.RANK,) * 4)
    assert relative_error(truth, bench.seeds["float32-factors"].factors) < 1e-6
    assert 0.5 < relative_error(truth, bench.seeds["sign"].factors) < 1


def test_what_was_written_with_the_older_layer_table_still_decodes(bench):
    """older/ranks.solar is what the commit 1960854 wrote for the seed `ranks`."""
    data, now = (seeds.PACKETS.parent / "older" / "ranks.solar").read_bytes(), bench.seeds["ranks"]
    assert data[6] != now.data[6] and len(data) == len(now.data) + 2
    found = packet.decode(data, bench.weights, usual_names=bench.names)
    assert found.header["ranks"] == packet.inspect(now.data)["ranks"]
    for name, own in now.factors.items():
        for one, other in zip(found.factors[name], own, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_short_campaign(bench):
    lines = []
    assert campaign.run(bench, 520, seed=1, every=13, say=lines.append) == []
    assert any(line.startswith("refused, by message") for line in lines)


def test_a_campaign_notices_what_it_looks_for(bench, monkeypatch):
    data, whole = bench.seeds["sign"].data, packet.decode
    assert campaign.judge(bench, data, True).kind == "same"

    def judged_with(decode):
        monkeypatch.setattr(packet, "decode", decode)
        return campaign.judge(bench, data, False)

    def louder(*args, **named):
        found = whole(*args, **named)
        for pair in found.factors.values():
            pair.left[0] *= 1.001
        return found

    def panic(*args, **named):
        raise type("PanicException", (BaseException,), {})("a panic of Rust")

    def hungry(*args, **named):
        assert np.ones(2**24).sum() > 0
        return whole(*args, **named)

    assert judged_with(louder)[:2] == ("other", "update")
    assert "a panic of Rust" in judged_with(panic).text
    if os.path.exists("/proc/self/clear_refs"):
        assert judged_with(hungry).megabytes > 100
    assert not campaign.is_allowed("solar", True, "update")
    assert not campaign.is_allowed("activation", True, "update")
    assert campaign.is_allowed("bits", True, "update")
    assert not campaign.is_allowed("bits", False, "update")
    assert campaign.is_allowed("solar", True, "heads")


FIELDS = [(name, 0, form, at) for name, (at, form) in mutate.HEADER.items() if at < 26]
FIELDS += [(name, 50, form, at) for name, (at, form) in mutate.RECIPE.items()]


@st.composite
def packets(draw):
    """A seed with any fields changed and any bytes in any part, its lengths right and signed."""
    chosen = draw(st.sampled_from(sorted(seeds.PACKETS.glob("*.solar"))))
    data = bytearray(chosen.read_bytes())
    for _, first, form, at in draw(st.lists(st.sampled_from(FIELDS), max_size=3)):
        size = {"B": 1, "H": 2, "h": 2, "f": 4, "Q": 8}[form]
        if first == 0 or data[7] == 32:
            data[first + at : first + at + size] = draw(st.binary(min_size=size, max_size=size))
    parts = mutate.cut(bytes(data))
    for name in draw(st.sets(st.sampled_from(["names", "table", "payload", "heads"]), max_size=2)):
        old, new = getattr(parts, name), draw(st.binary(max_size=40))
        at = draw(st.integers(0, len(old)))
        parts = parts._replace(**{name: old[:at] + new + old[at + draw(st.integers(0, 40)) :]})
    return mutate.sign(mutate.join(parts, bytes(8)))


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(data=packets())
def test_any_fields_and_bytes_are_refused_or_read(bench, data):
    found = campaign.judge(bench, data, False)
    assert found.kind != "fault", found.text
    method = container.METHODS[data[5]] if data[5] < len(container.METHODS) else ""
    assert found.kind != "other" or campaign.is_allowed(method, True, found.text)


# ---------------------------------------------------------------------------------- broken packets


def test_broken_packets_are_those_that_the_script_writes():
    held = {path.stem: path.read_bytes() for path in broken.BROKEN.iterdir()}
    assert held == {name: data for name, (data, _) in CASES.items()}
    assert len(held) > 60 and sum(map(len, held.values())) < 100_000


@pytest.mark.parametrize("name", CASES)
def test_a_broken_packet_is_refused_by_name(bench, name, tmp_path):
    file, base = broken.BROKEN / f"{name}.solar", str(bench.base)
    with pytest.raises(PacketError) as refused:
        api.verify(file, base, frames=bench.frames)
    message = str(refused.value)
    assert CASES[name][1] in message and "\n" not in message and message.isprintable()
    with pytest.raises(PacketError) as again:
        api.expand(file, base, tmp_path / "adapter", frames=bench.frames)
    assert str(again.value) == message and list(tmp_path.iterdir()) == []


def test_a_file_of_any_size_is_not_read(tmp_path, bench):
    large = tmp_path / "large.solar"
    large.write_bytes(bench.seeds["sign"].data)
    os.truncate(large, 2**36)  # no block of it is written
    with pytest.raises(PacketError, match="bytes after its end"):
        packet.read(large)
    foreign = tmp_path / "foreign.solar"
    foreign.touch()
    os.truncate(foreign, 2**36)
    with pytest.raises(PacketError, match="not a .solar packet"):
        packet.read(foreign)
    os.mkfifo(tmp_path / "pipe")
    for wrong in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(PacketError, match="it is not a file"):
            packet.read(wrong)


# ---------------------------------------------------------------------------------- limits


def test_names_are_printable_and_not_too_many():
    def pack(names):
        ranks = (1,) * len(names)
        return container.pack(
            container.Packet("float", b"\0\0\0", bytes(16), names, ranks, b"", b"")
        )

    assert container.unpack(pack(("a.b", "é.ü"))).names == ("a.b", "é.ü")
    for names in (("a\nb",), ("a\x1b",), ("",), ("n" * 1025,)):
        with pytest.raises(SolarError, match="unprintable"):
            pack(names)
    with pytest.raises(SolarError, match="the most a packet lists"):
        pack(tuple(f"{i:01000}" for i in range(4200)))


def test_a_packet_may_not_ask_for_too_much(bench, monkeypatch):
    """The receiver refuses, and the sender writes no such packet."""
    update = seeds.update(bench.weights, bench.names, (3,) * 4)
    setting, data = Setting(Recipe("orthogonal", 24), keep=5), bench.seeds["ranks"].data
    for limit, what in (
        ("ENTRIES", "504 factor entries"),
        ("POSITIONS", "576 positions"),
        ("NUMBERS", "numbers in atoms"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(guard, limit, (100, 0))
            with pytest.raises(PacketError, match=f"asks for too much: .*{what}"):
                encode(update, bench.weights, setting, usual_names=bench.names)
            with pytest.raises(PacketError, match="asks for too much"):
                packet.decode(data, bench.weights, usual_names=bench.names)
            patch.setattr(guard, limit, (100, 2**11))
            packet.decode(data, bench.weights, usual_names=bench.names)


@pytest.mark.parametrize("name", ["perturbed", "matrix-int8", "embedded", "entropy", "budget-int4"])
def test_atoms_are_added_up_in_pieces(bench, name, monkeypatch):
    seed = bench.seeds[name]
    cache = bench.folder / "cache"
    for size in (1, 5000):
        monkeypatch.setattr(coefficients, "CHUNK_BYTES", size)
        found = packet.decode(seed.data, bench.weights, usual_names=bench.names, cache=cache)
        assert relative_error(seed.factors, found.factors) < 1e-6


# ---------------------------------------------------------------------------------- files


def _with_head(bench, name: bytes) -> bytes:
    parts = mutate.cut(bench.seeds["sign"].data)
    head = broken.head(name, (2, 3), bytes(12))
    return mutate.sign(mutate.join(parts._replace(heads=head), bytes(8)))


def test_a_name_is_no_path(bench, tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    file = inner / "a.solar"
    for name in (b"../../escape.weight", b"/tmp/solar-escape.weight", b"..", b"C:\\a.weight"):
        file.write_bytes(_with_head(bench, name))
        try:
            api.expand(file, str(bench.base), inner / "out", force=True)
        except PacketError:
            assert name == b".."
            continue
        written = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
        folder = [f"inner/out/{n}" for n in campaign.WRITTEN]
        assert written == ["inner", "inner/a.solar", "inner/out", *folder]
        assert f"base_model.model.{name.decode()}" in load_file(inner / "out" / campaign.WRITTEN[1])
    assert not os.path.exists("/tmp/solar-escape.weight")


@pytest.fixture
def expanded(bench, tmp_path):
    """A packet, and a directory that it was expanded to before."""
    file, out = tmp_path / "a.solar", tmp_path / "out"
    file.write_bytes(bench.seeds["heads-float32"].data)
    api.expand(file, str(bench.base), out)
    (out / "mine.txt").write_text("kept")
    return SimpleNamespace(file=file, out=out, base=str(bench.base), folder=tmp_path)


def _tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_expand_replaces_only_by_force(expanded):
    before = _tree(expanded.folder)
    with pytest.raises(SolarError, match="exists; give another name, or --force"):
        api.expand(expanded.file, expanded.base, expanded.out)
    assert _tree(expanded.folder) == before
    api.expand(expanded.file, expanded.base, expanded.out, force=True)
    assert sorted(os.listdir(expanded.out)) == campaign.WRITTEN
    assert sorted(os.listdir(expanded.folder)) == ["a.solar", "out"]
    config = json.loads((expanded.out / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["score"]


def test_expand_replaces_a_file_and_a_link(expanded):
    plain, link = expanded.folder / "plain", expanded.folder / "link"
    plain.write_text("x")
    link.symlink_to(expanded.out)
    for out in (plain, link):
        api.expand(expanded.file, expanded.base, out, force=True)
        assert not out.is_symlink() and sorted(os.listdir(out)) == campaign.WRITTEN
    assert (expanded.out / "mine.txt").read_text() == "kept"  # what the link led to


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_a_failed_expand_leaves_the_old_directory(expanded, monkeypatch, error):
    before = _tree(expanded.folder)

    def halfway(folder, *rest, **more):
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(peft_io, "write", halfway)
        with pytest.raises(type(error)):
            api.expand(expanded.file, expanded.base, expanded.out, force=True)
        assert _tree(expanded.folder) == before
        with pytest.raises(type(error)):
            api.expand(expanded.file, expanded.base, expanded.folder / "fresh")
        assert sorted(os.listdir(expanded.folder)) == ["a.solar", "out"]

    rename = type(expanded.out).rename

    def unwilling(path, target):
        if path.name == "new":
            raise error
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(expanded.out), "rename", unwilling)
        with pytest.raises(type(error)):
            api.expand(expanded.file, expanded.base, expanded.out, force=True)
    assert _tree(expanded.folder) == before
    assert sorted(os.listdir(expanded.folder)) == ["a.solar", "out"]
