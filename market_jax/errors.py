"""The error that a user can mend."""


class InputError(ValueError):
    """What the user gave is wrong; the message names the file, the value and the rule.

    The scripts print the message alone, without a traceback.
    """
