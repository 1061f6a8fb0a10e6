"""The shipped base policy for Countdown: a folder that `from_pretrained` loads."""
