"""Where ranks come from: forked from one process that has imported torch and DeepSpeed already, which takes seconds."""

import multiprocessing

FORK_SERVER = multiprocessing.get_context("forkserver")
FORK_SERVER.set_forkserver_preload(["tests.helpers.preload"])
