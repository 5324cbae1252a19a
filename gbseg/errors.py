"""Which errors are refusals of gbseg itself, in a sentence that says what to do, and which may be bugs."""

import traceback

__all__ = ["is_refusal"]


def is_refusal(error: Exception) -> bool:
    """Whether gbseg itself raised an error, in a sentence for people.

    What breaks elsewhere, and an import that fails, may be a bug: it keeps its traceback.
    """
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    # a data loader raises the error of a worker again, from torch's code
    raised_in = frame.f_globals.get("__name__", ""), type(error).__module__
    own = any(name.startswith(("gbseg.", "reproduction.")) for name in raised_in) and not getattr(error, "name", None)
    return own and isinstance(error, ImportError | OSError | ValueError | RuntimeError)
