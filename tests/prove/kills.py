"""kill -9 a hundred times: `python -m tests.prove.kills [KILLS] [SEED]`, run by `make prove`.

Two thirds of the kills hit a build into a folder, the others one that reads its photos from and
writes its shards to a store on loopback that fails at every tenth request. Each build must end with
the bytes of one that was left alone. Prints how many kills came, and where.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from pathlib import Path

import fsspec
from moto.server import ThreadedMotoServer

from shard_tools.job import BuildSettings, build
from shard_tools.sources import SourceSettings
from tests.support.datasets import PHOTOS
from tests.support.faulty_store import FaultyStore, drawn
from tests.support.killing import Killing, files_of

# How often each photo comes, under other keys: enough work for a few kills each time.
_TIMES_IN_FOLDER = 10
_TIMES_IN_STORE = 2
_SAMPLES_PER_SHARD = 2


def main(kills: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        manifest = _write_manifest(folder / "many.jsonl", _TIMES_IN_FOLDER)
        _kill("a folder", str(manifest), str(PHOTOS), f"{folder}/killed", kills * 2 // 3, seed)

        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        os.environ |= {
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_MAX_ATTEMPTS": "1",
        }
        with FaultyStore(f"http://{host}:{port}") as store:
            os.environ["AWS_ENDPOINT_URL"] = store.url
            s3 = fsspec.filesystem("s3", use_listings_cache=False)
            s3.mkdir("photos")
            s3.put(str(PHOTOS / "images"), "photos/in/images", recursive=True)
            manifest = _write_manifest(folder / "few.jsonl", _TIMES_IN_STORE)
            s3.put_file(str(manifest), "photos/in/data.jsonl")
            store.plan = drawn(seed, share=0.1, in_a_row=3)
            source = "s3://photos/in/data.jsonl"
            _kill("a store", source, "s3://photos/in", "s3://photos/killed", kills // 3, seed)
            print(f"{store.faults.total()} of {len(store.requests)} requests failed")
        server.stop()


def _write_manifest(path: Path, times: int) -> Path:
    lines = (PHOTOS / "data.jsonl").read_text().splitlines()
    records = [
        {**json.loads(line), "key": f"{n}-{i}"}
        for n in range(times)
        for i, line in enumerate(lines)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _kill(where: str, manifest: str, images: str, output: str, kills: int, seed: int) -> None:
    alone = f"{output}-alone"
    source = SourceSettings("jsonl", manifest, images)
    build(BuildSettings(source, alone, samples_per_shard=_SAMPLES_PER_SHARD, workers=1))
    arguments = [
        "shard", "build", "source.kind=jsonl", f"source.path={manifest}",
        f"source.images={images}", f"samples_per_shard={_SAMPLES_PER_SHARD}", "workers=2",
    ]  # fmt: skip
    expected = files_of(alone)
    killing = Killing(arguments, output, expected, seed)
    killing.run(kills)
    shards = len(expected) // 2
    inside = sum(0 < count < shards for count in killing.unfinished)
    print(
        f"{where}: {killing.killed.total()} kills ({dict(killing.killed)}), {inside} of them with "
        f"some of {shards} shards done; {killing.finished} builds came to their end, all with the "
        "bytes of one that was left alone",
        flush=True,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100, int((sys.argv[2:] or ["0"])[0]))
