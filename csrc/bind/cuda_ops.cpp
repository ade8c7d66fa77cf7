// The CUDA ops: the half of each source that allocates, checks and calls the launchers.
#include "../cuda/adamw.cu"
#include "../cuda/cross_entropy.cu"
#include "../cuda/l2_norm.cu"
#include "../cuda/rms_norm.cu"
#include "../cuda/rope.cu"
#include "../cuda/softmax.cu"
#include "../cuda/swiglu.cu"
