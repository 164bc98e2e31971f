"""What an exception is called, told and recorded as, wherever it ends a run: in a sweep, in a parent, in a rank."""

import traceback

from essential_sparsity.runs import Run

EXPECTED = (
    "ValueError",
    "FileNotFoundError",
    "ForeignRun",
    "ChangedConfiguration",
    "WorkerDied",
    "BlockingIOError",
    "FloatingPointError",
    "NotADirectoryError",
    "DiskFull",
    "OutOfMemory",
)

FULL = ("No space left on device", "Disk quota exceeded", "File too large", "file write failed", "unexpected pos")
"""What a full disk is called by Python, pyarrow, safetensors and torch."""

EXHAUSTED = ("can't allocate memory", "out of memory", "Unable to allocate", "bad_alloc", "Cannot allocate memory")
"""What exhausted memory is called by torch, numpy, pyarrow and the system."""

REMEDIES = {
    "DiskFull": "make room, and the same command goes on",
    "OutOfMemory": "take a smaller data.batch_size, or a machine with more memory, and the same command goes on",
}


def kind_of(error: BaseException) -> str:
    """Name an exception's kind: `DiskFull` and `OutOfMemory` whoever raised it, else its class."""
    text = str(error)
    if isinstance(error, (OSError, RuntimeError, ValueError)) or type(error).__name__ == "SafetensorError":
        if any(words in text for words in FULL):
            return "DiskFull"
        if any(words in text for words in EXHAUSTED):
            return "OutOfMemory"
    return "OutOfMemory" if isinstance(error, MemoryError) else type(error).__name__


def one_line(error: BaseException) -> str:
    """Give an exception as one line, with a remedy where the machine was too small."""
    text = str(error).strip() or type(error).__name__
    remedy = REMEDIES.get(kind_of(error), "")
    if not text.endswith(remedy):  # a rank's error has its remedy already
        text = f"{text}: {remedy}"
    if isinstance(error, SystemExit):
        text = f"the process asked to exit with {error.code}"
    return " ".join(text.split())


def is_interrupt(error: BaseException) -> bool:
    """Say whether an exception is Ctrl-C, or what a library made of it: pyarrow says that it was cancelled, …."""
    seen: list[BaseException] = []
    while error not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__ or error
    return False


def write_failure(run: Run, error: BaseException) -> None:
    """Write a run's failure.json: kind, one line, traceback, and the step where the error knows it."""
    text = "".join(traceback.format_exception(error))
    run.fail(kind=kind_of(error), message=one_line(error), traceback=text, step=getattr(error, "step", None))
