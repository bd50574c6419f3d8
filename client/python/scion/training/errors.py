"""The one exception whose message is meant for the person at the keyboard."""


class TrainingError(Exception):
    """What the outside got wrong: a text, a path, a full disk. Its message names the thing and needs no traceback."""
