"""One module per verb, each with its click command as `command`. None is loaded before it is needed."""
