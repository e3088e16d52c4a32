"""The folder `<prefix>.parts` that a run works in: the plan it belongs to, and who may write to it."""

import contextlib
import errno
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from megasink.data.atomic import write_atomic
from megasink.errors import UserError
from megasink.tokenize.plan import Plan


class Workspace:
    """`plan.json` is written by whichever process comes first; the others must have the same plan."""

    def __init__(self, output_prefix: str, plan: Plan) -> None:
        self.folder = Path(f"{output_prefix}.parts")
        self._plan_path = self.folder / "plan.json"
        self._plan = plan

    def open(self, create: bool) -> None:
        """Check the folder's plan; with `create` make the folder where there is none."""
        if not create and not self._plan_path.exists():
            raise UserError(f"--merge: there is no {self._plan_path}; run the --shard jobs first")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._plan_path.exists() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
                raise UserError(f"{self.folder} exists and is not ours; move it away or choose another --output-prefix")
            if not self._plan_path.exists():
                write_atomic(self._plan_path, json.dumps(self._plan.settings).encode())
            found = json.loads(self._plan_path.read_bytes())
        except OSError as error:
            raise UserError(f"cannot write {self.folder}: {error.strerror}; choose another --output-prefix") from None
        except ValueError:
            raise UserError(f"{self._plan_path}: damaged; remove {self.folder} and start again") from None
        if found != self._plan.settings:
            changed = ", ".join(key for key, value in self._plan.settings.items() if found.get(key) != value)
            raise UserError(
                f"{self.folder} belongs to a run with other settings ({changed or 'an older version'}); give the same "
                "flags and inputs, or remove the folder to start again"
            )

    @contextlib.contextmanager
    def locked(self, task: str) -> Iterator[None]:
        """Hold the lock of one task; UserError where another process holds it."""
        with open(self.folder / f"{task}.lock", "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise UserError(f"{self.folder}: another process is at work on {task}; wait for it") from None
                # a file system without locks: then it is up to the user, and every rename is atomic anyway
            yield

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_if_nothing_is_finished(self) -> None:
        if not any(path.name != "plan.json" for path in self.folder.glob("*.json")):
            self.remove()
