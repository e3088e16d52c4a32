"""What a run needs and how long it takes, before it is queued: python tools/plan.py RUN.yaml --nodes 8 --gpu h100."""

import sys

from megasink.errors import run_cli


def main() -> None:
    # here, where run_cli ends Ctrl-C quietly: the imports take a while
    from megasink.config.cli import parse_cli
    from megasink.plan.command import PlanCommand, print_plan
    from megasink.train.vocabulary import vocab_size_at_hand

    argv = sys.argv[1:]
    if argv and not argv[0].startswith("-"):
        argv = ["--config", *argv]
    about = "Plan a run: memory, messages, time, checkpoints (docs/planning.md). RUN.yaml is read as with --config."
    command = parse_cli(PlanCommand, argv, about, usage=f"{sys.argv[0]} [RUN.yaml]")
    command.model.vocab_size, source = vocab_size_at_hand(command)
    print_plan(command, source)


if __name__ == "__main__":
    run_cli(main)
