"""What torch says only in the text of an error.  Apart from `torch`, which it does not import."""


def memory_asked(error: BaseException) -> str | None:
    """How much memory was asked for that is not there, "" if it is not said; None of any other error.

    The allocator of the CPU raises a RuntimeError, and neither it nor `OutOfMemoryError` has an attribute for the size.
    Read: torch 2.15.
    """
    text = str(error)
    if "can't allocate memory" in text:
        return ""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return text.partition("Tried to allocate ")[2].split(". ")[0]
    return None
