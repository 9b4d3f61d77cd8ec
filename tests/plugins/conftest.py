"""The package of the plug-in test is installed for its own processes only: importing it here would register it."""

collect_ignore = ["package"]
