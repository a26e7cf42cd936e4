// What the library was made of, as text that bertfast/_cuda.py finds in the file and compares with the checkout beside
// it.
#include "products.h"

BERTFAST_EXPORT const char bertfast_cuda_digest[] = "bertfast-cuda-digest:" BERTFAST_CUDA_DIGEST;
