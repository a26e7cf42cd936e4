"""sentence-transformers' `encode` and `predict`: an optimised model beside the library's own backends on this processor."""
