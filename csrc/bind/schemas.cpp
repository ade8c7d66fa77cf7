// The signatures of all ops, whichever devices implement them. Statistics are fp32; T is the
// product of the leading dimensions. What each op computes is said in chimed_launch.h.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(chimed, m) {
    m.def("rms_norm_forward(Tensor x, Tensor weight, float eps) -> (Tensor y, Tensor rstd)");
    m.def("rms_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor rstd)"
          " -> (Tensor dx, Tensor dweight)");
    m.def("add_rms_norm_forward(Tensor x, Tensor residual, Tensor weight, float eps)"
          " -> (Tensor y, Tensor summed, Tensor rstd)");
    m.def("add_rms_norm_backward(Tensor dy, Tensor dsummed, Tensor summed, Tensor weight,"
          " Tensor rstd) -> (Tensor dx, Tensor dweight)");
    m.def("swiglu_forward(Tensor gate_up) -> Tensor");
    m.def("swiglu_backward(Tensor dy, Tensor gate_up) -> Tensor");
    m.def("rope(Tensor q, Tensor k, Tensor cos, Tensor sin, bool inverse)"
          " -> (Tensor q_out, Tensor k_out)");
    m.def("cross_entropy_stats(Tensor logits, Tensor target, int vocab_start, int vocab_size)"
          " -> (Tensor max, Tensor sum, Tensor target_logit)");
    m.def("cross_entropy_backward_(Tensor(a!) logits, Tensor target, Tensor log_sum_exp,"
          " Tensor grad, int vocab_start, int vocab_size, float z_loss) -> ()");
    m.def("scaled_masked_softmax_forward(Tensor x, Tensor? mask, float scale, bool causal)"
          " -> Tensor");
    m.def("scaled_masked_softmax_backward(Tensor dy, Tensor y, float scale) -> Tensor");
    m.def("adamw_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs,"
          " Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] copies, float lr, float beta1, float beta2,"
          " float eps, float weight_decay, int step, float grad_scale) -> ()");
    m.def("l2_norm(Tensor[] tensors) -> Tensor");
    m.def("cached_attention(Tensor query, Tensor key, Tensor value, Tensor(a!) keys,"
          " Tensor(b!) values, Tensor slots, Tensor positions) -> Tensor");
    m.def("invariant_linear(Tensor x, Tensor weight) -> Tensor");
    // Chooses the CPU kernels of a level (0 baseline, 1 AVX2, 2 AVX-512) for the whole process, if
    // this machine has it; returns the level in use. -1 only asks. For tests and benchmarks.
    m.def("cpu_level(int level) -> int");
}
