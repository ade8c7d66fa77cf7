// The text of an error that a launcher returned, for callers without a CUDA header.
#include <cuda_runtime.h>

extern "C" const char* chimed_cuda_error_string(int error) {
    return cudaGetErrorString(static_cast<cudaError_t>(error));
}
