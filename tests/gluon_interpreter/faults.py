"""What the interpreter finds."""


class Fault(AssertionError):
    """A kernel does what hardware punishes, at least under some order of events.

    `kind` is one of
        race         memory is touched while something else may still write it, or written while something may still read it
        fence        a TMA copy or a wgmma meets bytes that were stored without `fence_async_shared`
        deadlock     nobody can go on
        bytes        a barrier expects other bytes than its copies bring
        arrivals     more arrivals at a barrier than its count
        accumulator  sums are read before the wait that retires their product
        unfinished   a partition ends with copies or products that it did not wait for
        barrier      a barrier is used before `init`, after `invalidate`, or with a phase that is no parity
        uninitialised, bounds, shape, overflow, steps    what they say; `steps`: more events than the limit
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
