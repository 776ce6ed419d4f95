"""What all tests share: settings that must precede JAX's start, keys, real data."""

import itertools
import zlib

import jax

# Before anything starts a backend: two host devices, as on a machine with two cores.
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import quick  # noqa: E402
from real_browser import browser as browser  # noqa: E402
from real_data import prepared_data as prepared_data  # noqa: E402
from real_data import prepared_texts as prepared_texts  # noqa: E402
from real_data import real_model as real_model  # noqa: E402

# The first example compiles, and a shared machine stands still at times.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


@pytest.fixture
def getkey(request):
    """`getkey()` is a new PRNG key at each call, the same ones in each run of a test."""
    seed = zlib.crc32(request.node.nodeid.encode())
    keys = (jax.random.fold_in(jax.random.key(seed), i) for i in itertools.count())
    return lambda: next(keys)


@pytest.fixture(scope="module")
def compiled_quickly():
    """For a file whose programs run only a few times: all are compiled quickly.

    They are compiled alike, so two of them may still be compared bit for bit.
    """
    # What other files compiled is not used here, nor what this one compiles there.
    jax.clear_caches()
    with quick.compilation():
        yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    """A data folder of made-up texts and a small encoder, see `text_files`."""
    pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    import text_files

    return text_files.write(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def made_texts(text_folder):
    """For a file whose experiments read texts: they find the made-up ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(text_folder))
        yield text_folder
