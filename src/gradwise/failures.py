"""What the command line says of errors whose cause is known: one sentence instead of a traceback."""

from gradwise.errors import GradwiseError
from gradwise.text import clipped, one_line

MEMORY = (
    "out of memory. Lower train.per_device_train_batch_size or data.max_length (while training), or "
    "signals.batch_tokens (while scoring); what is saved stays, and the same command continues from it."
)

RUNTIME = {
    "DefaultCPUAllocator": MEMORY,  # torch's error on a CPU has no class of its own
    "DataLoader worker": (
        "a loader worker died, most likely killed for want of memory or shared memory; lower "
        "train.dataloader_num_workers. The same command continues from the last checkpoint."
    ),
}
"""How torch words what it raises as plain RuntimeErrors."""


def sentence_on(error: BaseException) -> str | None:
    """What went wrong and what to do, or None for an error that only a defect explains."""
    if isinstance(error, GradwiseError):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return MEMORY
    if isinstance(error, RuntimeError) and not isinstance(error, RecursionError):
        return next((sentence for words, sentence in RUNTIME.items() if words in str(error)), None)
    if isinstance(error, RecursionError):
        return "something is nested too deeply to be processed; look for such values in the data."
    if isinstance(error, ImportError):
        return _on_import(error)
    if type(error).__module__.startswith(("huggingface_hub", "httpx", "requests")):
        return f"the hub did not answer as expected: {one_line(error)}."
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{clipped(str(error.filename), 300)}: {error.strerror}."
    return None


def _on_import(error: ImportError) -> str | None:
    package = (error.name or "").partition(".")[0]
    if package == "gradwise":
        return None
    advice = (
        f"run: pip install {package}" if isinstance(error, ModuleNotFoundError) else "upgrade that package"
    )
    return f"{one_line(error)}; {advice}."
