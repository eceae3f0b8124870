"""Lists and trees of a kernel, walked so that damage ends a branch and never the whole."""
