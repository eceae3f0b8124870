"""Files as the kernel knows them: paths of dentries, mounts of a namespace, what a task has open."""
