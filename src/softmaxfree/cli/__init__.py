"""The commands: a module each, whose `run` receives what `softmaxfree_cli` has parsed."""
