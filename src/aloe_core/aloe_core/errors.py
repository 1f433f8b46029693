"""The one error type that a person reads.

An `AloeError` carries a sentence that names the file, topic or key concerned and what to do about it. The command line prints it without a
traceback; anything else that is raised is a bug in this software.
"""

LONGEST = 2000  # characters: a sentence may quote what it was given, and that may be a whole file


class AloeError(Exception):
    """Bad input or a bad environment, explained in one sentence."""

    def __init__(self, sentence: str = "") -> None:
        super().__init__(
            sentence if len(sentence) <= LONGEST else f"{sentence[:LONGEST]} ... ({len(sentence)} characters)"
        )
