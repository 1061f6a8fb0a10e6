"""What the verbs of the command line do: one file per verb, and one for the four that are Lightning's."""
