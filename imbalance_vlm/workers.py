"""What all worker processes do: those of studies, of verification, of the loading of images, and of torchrun."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """End this process as soon as the one that started it ends, also if that is killed; call it first in a worker."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()
    else:  # another program has started it
        threading.Thread(target=_exit_without, args=(os.getppid(),), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _exit_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
