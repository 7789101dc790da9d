"""Features kept in memory and on disk: bits, keys, other writers, kills, and damaged files."""

import multiprocessing
import os
import signal
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from hnpretrain.eval.store import InMemory, OnDisk, fingerprint
from tests.eval.conftest import ColorClip, RandomClip

FORK = multiprocessing.get_context("fork")
PATIENCE = 30  # seconds


@pytest.fixture(params=["memory", "disk"])
def reopened(request, tmp_path):
    """reopened() -> the same store again."""
    if request.param == "memory":
        memory = InMemory()
        return lambda: memory
    return lambda: OnDisk(tmp_path / "cache", "model")


@pytest.fixture
def store(tmp_path):
    return OnDisk(tmp_path / "cache", "model")


def feature(number, size=64):
    return torch.full((size,), float(number))


def keys_of(numbers):
    return [f"image {number}".encode() for number in numbers]


def features_of(numbers, size=64):
    numbers = list(numbers)
    values = (feature(number, size) for number in numbers)
    return dict(zip(keys_of(numbers), values, strict=True))


def assert_holds(store, numbers):
    """These and no other of the first 10,000."""
    found = store.get(keys_of(range(10_000)))
    assert set(found) == set(keys_of(numbers))
    for number, key in zip(numbers, keys_of(numbers), strict=True):
        assert (found[key] == number).all()


def test_features_come_back_to_the_last_bit(reopened):
    rows = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    tiny = torch.finfo(torch.float32).tiny
    rows[1, :5] = torch.tensor([0.0, -0.0, tiny / 8, 1 / 3, -torch.inf])
    # Keys are any bytes; a row may be a view.
    features = {
        b"": rows[0],
        b"image \x00\xff": rows[1],
        b"caption 1": rows[2],
        b"columns": rows.T[7],
    }
    reopened().put(features)
    found = reopened().get([*features, b"unknown", b"image \x00"])
    assert set(found) == set(features)
    for key, want in features.items():
        assert found[key].dtype == torch.float32
        assert found[key].tolist() == want.tolist()
        assert torch.equal(found[key].view(torch.int32), want.contiguous().view(torch.int32))


def test_what_is_there_stays_and_nothing_is_no_error(reopened):
    reopened().put(features_of([1, 2]))
    reopened().put({keys_of([1])[0]: feature(9), keys_of([3])[0]: feature(3)})
    reopened().put({})
    assert reopened().get([]) == {}
    assert_holds(reopened(), [1, 2, 3])


def test_many_keys_at_once(store):
    store.put(features_of(range(0, 2500, 2), size=4))
    assert_holds(store, range(0, 2500, 2))
    # An iterator is used once; a key may be asked for twice.
    assert len(store.get(iter(keys_of([2, 4, 2, 3])))) == 2


def test_each_model_has_its_own_file(tmp_path):
    one, other = (OnDisk(tmp_path, name) for name in ("one", "other"))
    one.put(features_of([1]))
    assert other.get(keys_of([1])) == {}
    assert len(list(tmp_path.iterdir())) == 2


def test_threads_share_a_store(store):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: store.put(features_of([number])), range(20)))
    assert_holds(store, range(20))


def in_processes(*targets):
    """Runs functions in processes of their own, all from one moment on, to their end."""
    together = FORK.Barrier(len(targets))

    def run(target):
        together.wait(PATIENCE)
        target()

    children = [FORK.Process(target=run, args=(target,)) for target in targets]
    for child in children:
        child.start()
    for child in children:
        child.join(PATIENCE)
    codes = [child.exitcode for child in children]
    for child in children:
        child.kill()
    assert codes == [0] * len(targets)


def test_two_processes_that_write_one_file_lose_nothing(tmp_path):
    def write(numbers):
        # Each makes the file if the other has not.
        own = OnDisk(tmp_path / "cache", "model")
        for number in numbers:
            own.put(features_of([number, 1000 + number]))
            assert len(own.get(keys_of([number]))) == 1

    # Every second one is written by both.
    in_processes(lambda: write(range(0, 60, 2)), lambda: write(range(60)))
    assert_holds(OnDisk(tmp_path / "cache", "model"), [*range(60), *range(1000, 1060)])


def test_a_killed_writer_leaves_a_file_to_go_on_with(store):
    size, first_done = 2000, FORK.Event()

    def write_for_ever():
        for number in range(10_000 // size):
            # 4 MB: more than SQLite holds back until a transaction's end.
            store.put(features_of(range(number * size, (number + 1) * size), size=512))
            first_done.set()
        time.sleep(PATIENCE)

    def in_a_put():
        """Whether the writer, stopped, has a journal: it is there while a transaction is."""
        os.kill(child.pid, signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        return len(list(store.path.parent.iterdir())) > 1

    child = FORK.Process(target=write_for_ever)
    child.start()
    try:
        assert first_done.wait(PATIENCE)
        for _ in range(1000):
            if in_a_put():
                break
            os.kill(child.pid, signal.SIGCONT)
            time.sleep(0.001)
        else:
            pytest.fail("the writer is never in a put")
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.join()

    again = OnDisk(store.path.parent, "model")
    kept = again.get(keys_of(range(10_000)))
    # Whole puts alone, the first one among them.
    count = len(kept)
    assert count in range(size, 10_000, size)
    assert_holds(again, range(count))
    again.put(features_of(range(10_000)))
    assert_holds(again, range(10_000))


def assert_refused(path, *, put=True):
    """One line that names the file, whatever is done with it."""

    def opened():
        return OnDisk(path.parent, "model")

    asked = [lambda: opened().get(keys_of(range(500)))]
    if put:
        asked.append(lambda: opened().put(features_of(range(1000, 1400), size=512)))
    for ask in asked:
        with pytest.raises(ValueError, match=r"^feature cache ") as caught:
            ask()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_file_of_another_program_is_refused(store):
    store.path.write_text("a text that is longer than the head of a data base " * 10)
    assert_refused(store.path)
    store.path.unlink()
    with sqlite3.connect(store.path) as file:
        file.execute("CREATE TABLE features (name TEXT)")
    file.close()
    assert_refused(store.path)
    store.path.unlink()
    store.path.mkdir()
    assert_refused(store.path)


def test_a_damaged_file_is_refused(store):
    store.put(features_of(range(400), size=512))
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[: len(whole) // 2])
    assert_refused(store.path)
    store.path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    assert_refused(store.path)
    store.path.write_bytes(b"\x00" * 100 + whole[100:])
    assert_refused(store.path)


def test_a_feature_of_another_length_of_bytes_is_refused(store):
    with sqlite3.connect(store.path) as file:
        file.execute("INSERT INTO features VALUES (?, ?)", (keys_of([1])[0], b"seven b"))
    file.close()
    assert_refused(store.path, put=False)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ValueError, match=r"feature cache .*file.*features-.*model\.sqlite"):
        OnDisk(tmp_path / "file", "model")


def two_layers(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)).to(dtype)


def test_the_same_model_has_the_same_fingerprint(tmp_path):
    told = fingerprint(two_layers(), "224 pixels", "fp32")
    assert len(told) == 32
    assert int(told, 16) >= 0
    loaded = two_layers(seed=1)
    torch.save(two_layers().state_dict(), tmp_path / "weights.pt")
    loaded.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert fingerprint(loaded, "224 pixels", "fp32") == told
    # Neither the mode nor a gradient is part of it.
    loaded.train(False).requires_grad_(False)
    assert fingerprint(loaded, "224 pixels", "fp32") == told


def changed(change):
    model = two_layers()
    with torch.no_grad():
        change(model)
    return model


@pytest.mark.parametrize(
    "model",
    [
        two_layers(seed=1),
        two_layers(dtype=torch.bfloat16),
        changed(lambda model: model[2].bias[:1].nextafter_(torch.tensor(9.0))),
        changed(lambda model: model[1].running_var.mul_(2)),  # not a parameter
        changed(lambda model: model.insert(1, model.pop(2))),  # the same tensors in other places
        changed(lambda model: model[0].weight.copy_(model[0].weight.T.clone())),
    ],
    ids=["weights", "precision", "last bit", "buffer", "order", "transposed"],
)
def test_another_model_has_another_fingerprint(model):
    settings = ("224 pixels", "fp32")
    assert fingerprint(model, *settings) != fingerprint(two_layers(), *settings)


def test_other_settings_and_classes_have_other_fingerprints():
    class Renamed(ColorClip):
        pass

    told = [
        fingerprint(ColorClip(), "224 pixels", "fp32"),
        fingerprint(ColorClip(), "336 pixels", "fp32"),
        fingerprint(ColorClip(), "224 pixels", "bf16"),
        fingerprint(ColorClip(), "224 pixels"),
        fingerprint(Renamed(), "224 pixels", "fp32"),
        fingerprint(RandomClip(), "224 pixels", "fp32"),
    ]
    assert len(set(told)) == len(told)
