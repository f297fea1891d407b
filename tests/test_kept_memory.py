"""The settings of malloc that training's workers get: they keep what they free, also on the thread that Ray Train gives them."""

import os
import subprocess
import sys

import pytest

from kd.ray_train import KEEP_MEMORY

PAGES = 64 * 2**20 // os.sysconf("SC_PAGE_SIZE")
PROGRAM = """
import resource, threading, torch

def use():
    torch.ones(16 * 2**20)

def faults():
    for _ in range(30):
        use()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        use()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=faults)
thread.start()
thread.join()
"""


def faults(settings: dict[str, str]) -> int:
    """Page faults of five tensors of 64 MiB, each freed before the next one is made, on a thread that has made some before."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | settings, capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(os, "confstr") or "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="needs glibc")
def test_memory_that_a_worker_frees_is_used_again_without_a_page_fault() -> None:
    assert faults(KEEP_MEMORY) < PAGES / 10
    assert faults({}) > 4 * PAGES, "else the settings are of no use any more"
