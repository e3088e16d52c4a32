"""wandb, which may be absent, offline or broken without stopping a run."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from megasink.config import RunConfig


class Tracker:
    """Logs to wandb: online if the user is logged in, otherwise offline (`wandb sync` sends it later).

    A resumed run goes on under the same id, which the run folder keeps. The command line, the git remote and its
    diff, where a token may hide, stay out of wandb's files: provenance.json has what is needed of them.
    """

    def __init__(self, config: RunConfig, folder: Path):
        self.run = None
        if config.logging.wandb_mode == "disabled":
            return
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            import wandb

            mode = config.logging.wandb_mode
            if mode == "auto":
                mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
            id_file = folder / "wandb" / "run_id.txt"
            self.run = wandb.init(
                id=id_file.read_text(encoding="utf-8").strip() if id_file.exists() else None,
                resume="allow",
                project=config.logging.wandb_project,
                name=config.logging.run_name or folder.resolve().name,
                dir=str(folder),
                mode=mode,
                config=dataclasses.asdict(config),
                settings=wandb.Settings(
                    console="off", init_timeout=30, disable_git=True, disable_code=True, x_disable_meta=True
                ),
            )
            id_file.parent.mkdir(exist_ok=True)
            id_file.write_text(self.run.id, encoding="utf-8")
        except Exception as error:  # whatever goes wrong there, the run goes on
            self._give_up(error)

    def log(self, values: dict, step: int) -> None:
        """values: scalars; None is left out."""
        present = {name: value for name, value in values.items() if value is not None}
        self._try(lambda run: run.log(present, step=step))

    def log_images(self, images: dict[str, Image.Image], step: int | None) -> None:
        def log(run) -> None:
            import wandb

            run.log({name: wandb.Image(image) for name, image in images.items()}, step=step)

        self._try(log)

    def alert(self, title: str, text: str) -> None:
        """Tell the people who follow the run there."""
        self._try(lambda run: run.alert(title=title, text=text))

    def finish(self) -> None:
        self._try(lambda run: run.finish())

    def _try(self, action: Callable[[Any], None]) -> None:
        """`action` on wandb's run, if there is one still; whatever goes wrong there, the training goes on."""
        if self.run is None:
            return
        try:
            action(self.run)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.run = None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(f"megasink: wandb is off for this run ({reason})", file=sys.stderr, flush=True)
        if isinstance(error, ConnectionError):  # its process is gone; Slurm signals all processes of a job
            import wandb

            with contextlib.suppress(Exception):
                wandb.teardown()  # else it does so at exit, with a traceback
