"""How far a node's clock is from rank 0's."""

import time

import torch
import torch.distributed as dist

from megasink.preflight.nodes import Nodes

QUESTIONS = 8


def clock_offset(nodes: Nodes) -> float | None:
    """Seconds that this node's clock is ahead of rank 0's; None on ranks that do not lead their node.

    As NTP does it: ask for the time, and take the middle of the way; of several questions the quickest counts, so that
    the error is at most half its round trip. Every rank calls this.
    """
    if len(nodes.names) == 1:
        return 0.0
    group = dist.new_group(nodes.leaders, backend="gloo")
    if not nodes.leads:
        return None
    asked = torch.zeros(1, dtype=torch.float64)
    offset = 0.0
    if dist.get_rank() == 0:
        for leader in nodes.leaders[1:]:
            for _ in range(QUESTIONS):
                dist.recv(asked, leader, group=group)
                dist.send(torch.tensor([time.time()], dtype=torch.float64), leader, group=group)
    else:
        answers = []
        for _ in range(QUESTIONS):
            began = time.time()
            dist.send(asked, 0, group=group)
            dist.recv(asked, 0, group=group)
            ended = time.time()
            answers.append((ended - began, (began + ended) / 2 - asked.item()))
        offset = min(answers)[1]
    dist.destroy_process_group(group)
    return offset
