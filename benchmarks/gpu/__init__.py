"""The GPU suite: cases as data, compiled ahead of time without a GPU and measured with one."""
