"""Two processes: batches in their order, one value for both, and a failure that both hear of."""

import functools
import multiprocessing
import os
import socket

import cloudpickle
import pytest
import torch

from hnpretrain.eval.encode import All, BadImages, Encoder
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.processes import is_main, processes
from tests.eval.conftest import ColorClip, to_tensor, tokenize_colors

# Not "fork": the tests' process may be in a group already. Not "spawn": each would import torch.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["hnpretrain.eval.processes"])
PATIENCE = 30  # seconds; what takes longer hangs


def in_two(work):
    """What `work(share, rank)` gives, or the exception that it raises, in each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [SERVER.Pipe(duplex=False) for _ in range(2)]
    pickled = cloudpickle.dumps(work)  # the tests' works are closures
    children = [
        SERVER.Process(target=run, args=(rank, port, pickled, sender))
        for rank, (_, sender) in enumerate(pipes)
    ]
    for child in children:
        child.start()
    try:
        for rank, (receiver, _) in enumerate(pipes):
            assert receiver.poll(PATIENCE), f"process {rank} hangs"
        return [receiver.recv() for receiver, _ in pipes]
    finally:
        for child in children:
            child.kill()
            child.join()


def run(rank, port, pickled, sender):
    """What torchrun does for a process."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with processes() as share:
        try:
            sender.send(cloudpickle.loads(pickled)(share, rank))
        except Exception as error:
            sender.send(error)


def told(error):
    return type(error), str(error)


@pytest.mark.parametrize("batches", [0, 1, 2, 5])
def test_batches_come_in_their_order_whoever_has_made_them(batches):
    def work(share, rank):
        mine = [number for number in range(batches) if share.takes(number)]
        return share.joined(lambda: [[f"batch {number} of {rank}"] for number in mine])

    want = [[f"batch {number} of {number % 2}"] for number in range(batches)]
    assert in_two(work) == [want, want]


def test_features_come_to_the_other_process_to_the_last_bit():
    features = torch.randn(2, 3, 512, generator=torch.Generator().manual_seed(0))

    def work(share, rank):
        # As an array: a tensor would come by memory that ends with its process.
        return torch.stack(share.joined(lambda: [features[rank]])).numpy()

    for found in in_two(work):
        assert torch.equal(torch.from_numpy(found), features)


def test_the_main_process_alone_makes_what_is_the_same_for_all():
    def work(share, rank):
        made = []
        value = share.same(lambda: made.append(rank) or f"of {rank}")
        return value, made, is_main()

    assert in_two(work) == [("of 0", [0], True), ("of 0", [], False)]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_of_one_is_raised_in_both_and_they_stay_in_step(failing):
    def work(share, rank):
        def fail():
            if rank == failing:
                raise ValueError(f"process {rank} met a NaN")
            return [rank]

        with pytest.raises(ValueError, match=f"^process {failing} met a NaN$"):
            share.joined(fail)
        return share.joined(lambda: [rank]), share.same(lambda: "and on")

    assert in_two(work) == [([0, 1], "and on")] * 2


class Stuck(RuntimeError):
    """Cannot be made from its message alone, as many libraries' errors."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def test_an_error_that_cannot_travel_is_told_in_words():
    def work(share, rank):
        def fail():
            if rank == 1:
                raise Stuck("no", "memory")
            return []

        share.joined(fail)

    assert [told(error) for error in in_two(work)] == [(RuntimeError, "Stuck: no memory")] * 2


def test_what_is_told_of_bad_images_arrives_whole():
    reasons = {("a.jpg", (0.0, 0.0, 2.0, 2.0), ()): "image a.jpg cannot be read: it is cut"}

    def work(share, rank):
        def fail():
            if rank == 1:
                raise BadImages(reasons)
            return []

        try:
            share.joined(fail)
        except BadImages as error:
            return error.reasons

    assert in_two(work) == [reasons, reasons]


def test_of_two_failures_both_raise_the_first():
    def work(share, rank):
        def fail():
            raise RuntimeError(f"process {rank}")

        share.joined(fail)

    assert [told(error) for error in in_two(work)] == [(RuntimeError, "process 0")] * 2


def test_a_failure_of_the_main_process_is_raised_in_both():
    def work(share, rank):
        share.same(lambda: {}["features"] if rank == 0 else None)

    assert [told(error) for error in in_two(work)] == [(KeyError, "'features'")] * 2


def encoder_of(share):
    return Encoder(ColorClip(), to_tensor, tokenize_colors, batch_size=2, threads=1, share=share)


@pytest.mark.parametrize("unread", [0, 2])
def test_a_file_that_one_process_alone_cannot_read_does_not_part_them(paint, unread):
    """Images 0 and 1 are a batch of the main process, 2 and 3 one of the other."""
    pictures = [paint(number * 4001) for number in range(4)]
    alone = encoder_of(All()).encode_images(map(ImageSource, "0123", pictures)).numpy()

    def work(share, rank):
        def read(number):
            if rank == 1 and number == unread:
                raise OSError("stale handle")
            return pictures[number]

        encoder = encoder_of(share)
        images = [ImageSource(str(n), functools.partial(read, n)) for n in range(4)]
        try:
            found = encoder.encode_images(images).numpy()
        except BadImages as error:
            found = error.reasons
        return found, encoder.encode_texts(["a red car", "a blue car", "a car"]).numpy()

    (first, texts), (second, other_texts) = in_two(work)
    assert (texts == other_texts).all()
    if unread == 0:
        assert (first == alone).all()
        assert (second == alone).all()
    else:
        assert first == second == {("2", None, ()): "image 2 cannot be read: stale handle"}


def test_a_store_that_fails_in_one_process_fails_in_both(paint):
    def work(share, rank):
        encoder = encoder_of(share)
        if rank == 1:
            encoder.store.put = lambda _: (_ for _ in ()).throw(ValueError("the disk is full"))
        encoder.encode_images([ImageSource(str(n), paint(n * 4001)) for n in range(4)])

    assert [told(error) for error in in_two(work)] == [(ValueError, "the disk is full")] * 2


def test_processes_whose_files_differ_say_so():
    def work(share, rank):
        encoder_of(share).encode_texts(["a red car", ("a blue car", "a green car")[rank]])

    message = "the processes have read different captions: their files differ"
    assert [told(error) for error in in_two(work)] == [(ValueError, message)] * 2


@pytest.mark.parametrize("size", [None, "1"])
def test_one_process_does_all_by_itself(monkeypatch, size):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    with processes() as share:
        assert isinstance(share, All)
        assert all(share.takes(number) for number in range(5))
        assert share.joined(lambda: [1, 2]) == [1, 2]
        assert share.same(lambda: "value") == "value"
    assert is_main()
