"""The errors a user may see. Each is one plain sentence: the value, the rule and the way out."""


class Fmri2imgError(Exception):
    """The job failed. The command line prints the message as one line and exits with `exit_code`."""

    exit_code = 1


class InputError(Fmri2imgError):
    """A flag, a configuration, a folder or a file given by the user cannot be used as it is."""

    exit_code = 2


class DamageError(Fmri2imgError):
    """Stored bytes differ from what their manifest or index says; names the file, the key and the rule."""


class StoppedError(Fmri2imgError):
    """The job stopped before its end with a committed checkpoint: the same command goes on from there."""

    exit_code = 75
