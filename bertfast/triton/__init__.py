"""What the Triton kernels of several ops share. Imported only where a kernel is launched, never by `import bertfast`."""
