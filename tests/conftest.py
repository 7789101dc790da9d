"""Settings for all tests, made before torch is imported, and a bucket."""

import os
import signal

import pytest

# Tests start several processes on two cores; more threads than cores slow all of them down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell's background job ignores Ctrl-C, and so would all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def bucket():
    """`s3://photos`, served here; the environment tells s3fs, in workers too, where it is."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        # An instance that is cached would remember the environment of another test.
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        s3 = fsspec.filesystem("s3", use_listings_cache=False)
        if not s3.exists("photos"):  # the server's buckets outlive it in this process
            s3.mkdir("photos")
        yield "s3://photos"
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()
