// The CUDA side of the ops: allocates outputs and scratch, calls the launchers of csrc/cuda on
// torch's current stream. No CUDA header is needed here; a failed launch raises at once, and an
// error inside a kernel shows where CUDA reports it, as for torch's own.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <cmath>
#include <initializer_list>

#include "chimed_cuda.h"
#include "common_ops.h"
#include "tensors.h"

namespace chimed {
namespace {

using torch::stable::empty_like;

using StreamOf = AOTITorchError (*)(int32_t device_index, void** stream);

// The function lives in libtorch_cuda.so. It is looked up in the one that Python has loaded, not
// linked, so that this library also loads beside a torch without CUDA.
StreamOf find_stream_of() {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    require(torch_cuda != nullptr, "this torch has no CUDA");
    void* function = dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream");
    require(function != nullptr, "this torch does not tell its current CUDA stream");
    return reinterpret_cast<StreamOf>(function);
}

// Makes the tensors' device the current one for its lifetime; refuses a tensor of another device,
// whose address would be an illegal access in a kernel.
class OnDevice {
public:
    explicit OnDevice(const Tensor& first, std::initializer_list<const Tensor*> others = {})
        : device_(first.get_device_index()), guard_(device_) {
        require_here(first);
        for (const Tensor* other : others) {
            if (other) require_here(*other);
        }
    }

    void require_here(const Tensor& x) const {
        require(x.is_cuda() && x.get_device_index() == device_,
                "all tensors must be on one CUDA device");
    }

    void* stream() const {
        static const StreamOf stream_of = find_stream_of();
        void* stream = nullptr;
        TORCH_ERROR_CODE_CHECK(stream_of(device_, &stream));
        return stream;
    }

private:
    int32_t device_;
    torch::stable::accelerator::DeviceGuard guard_;
};

void check(int error, const char* op) {
    STD_TORCH_CHECK(error == 0, "chimed: ", op, ": ", chimed_cuda_error_string(error), " (CUDA ",
                    error, ")");
}

const void* in_or_null(const Tensor* x) { return x ? in(*x) : nullptr; }

std::tuple<Tensor, Tensor, Tensor> norm_forward(const Tensor& x, const Tensor* residual,
                                                const Tensor& weight, double eps) {
    const OnDevice here(x, {residual, &weight});
    const int64_t rows = rows_of(x);
    require_dense(x);
    require_weight(weight, x);
    if (residual) require_twins(x, *residual);
    Tensor y = empty_like(x), summed = residual ? empty_like(x) : x, rstd = fp32_like(x, {rows});
    check(chimed_cuda_rms_norm_forward(dtype_of(x), in(x), in_or_null(residual), in(weight), out(y),
                                       residual ? out(summed) : nullptr, out<float>(rstd), rows,
                                       width_of(x), float(eps), here.stream()),
          "rms_norm_forward");
    return {y, summed, rstd};
}

std::tuple<Tensor, Tensor> norm_backward(const Tensor& dy, const Tensor* dsummed, const Tensor& x,
                                         const Tensor& weight, const Tensor& rstd) {
    const OnDevice here(x, {&dy, dsummed, &weight, &rstd});
    const int64_t rows = rows_of(x), h = width_of(x);
    require_twins(dy, x);
    require_weight(weight, x);
    require_fp32(rstd, rows);
    if (dsummed) require_twins(*dsummed, x);
    const int64_t num_partials = chimed_cuda_rms_norm_partials(dtype_of(x), rows, h);
    Tensor dx = empty_like(x), dweight = empty_like(weight),
           partials = fp32_like(x, {num_partials, h});
    check(chimed_cuda_rms_norm_backward(dtype_of(x), in(dy), in_or_null(dsummed), in(x), in(weight),
                                        in<float>(rstd), out(dx), out(dweight),
                                        out<float>(partials), num_partials, rows, h, here.stream()),
          "rms_norm_backward");
    return {dx, dweight};
}

#include "norm_schemas.h"

Tensor swiglu_forward(const Tensor& gate_up) {
    const OnDevice here(gate_up);
    const int64_t f = width_of(gate_up) / 2;
    require_dense(gate_up);
    require(width_of(gate_up) % 2 == 0, "gate_up must have an even width");
    std::vector<int64_t> shape(gate_up.sizes().begin(), gate_up.sizes().end());
    shape.back() = f;
    Tensor y = torch::stable::new_empty(gate_up, shape);
    check(chimed_cuda_swiglu_forward(dtype_of(gate_up), in(gate_up), out(y), rows_of(gate_up), f,
                                     here.stream()),
          "swiglu_forward");
    return y;
}

Tensor swiglu_backward(const Tensor& dy, const Tensor& gate_up) {
    const OnDevice here(gate_up, {&dy});
    const int64_t rows = rows_of(gate_up), f = width_of(gate_up) / 2;
    require_dense(dy);
    require_dense(gate_up);
    require(width_of(gate_up) % 2 == 0, "gate_up must have an even width");
    require(dy.scalar_type() == gate_up.scalar_type() && dy.numel() == rows * f,
            "dy must have half the width of gate_up and its dtype");
    Tensor dgate_up = empty_like(gate_up);
    check(chimed_cuda_swiglu_backward(dtype_of(dy), in(dy), in(gate_up), out(dgate_up), rows, f,
                                      here.stream()),
          "swiglu_backward");
    return dgate_up;
}

// x [T, n, d]: tokens and heads may be strided, d is dense.
Tensor rope_output(const Tensor& x, const Tensor& q) {
    require(x.dim() == 3 && x.size(0) == q.size(0) && x.size(2) == q.size(2),
            "q and k must be [T, n, d] with one T and one d");
    require(x.scalar_type() == q.scalar_type(), "q and k must have one dtype");
    require(x.size(2) % 2 == 0 && x.size(2) > 0, "the head width must be even");
    require(x.stride(2) == 1, "the elements of a head must be dense");
    return torch::stable::new_empty(
        x, std::vector<int64_t>{x.size(0), x.size(1), x.size(2)});
}

std::tuple<Tensor, Tensor> rope(const Tensor& q, const Tensor& k, const Tensor& cos,
                                const Tensor& sin, bool inverse) {
    const OnDevice here(q, {&k, &cos, &sin});
    Tensor q_out = rope_output(q, q), k_out = rope_output(k, q);
    const int64_t tokens = q.size(0), d = q.size(2);
    require_fp32(cos, tokens * (d / 2));
    require_fp32(sin, tokens * (d / 2));
    const ChimedRope q_side = {in(q), out(q_out), q.size(1), q.stride(0), q.stride(1)};
    const ChimedRope k_side = {in(k), out(k_out), k.size(1), k.stride(0), k.stride(1)};
    check(chimed_cuda_rope(dtype_of(q), &q_side, &k_side, in<float>(cos), in<float>(sin), tokens, d,
                           inverse, here.stream()),
          "rope");
    return {q_out, k_out};
}

void require_logits(const Tensor& logits, const Tensor& target) {
    require_dense(logits);
    require_targets(target, rows_of(logits));
    require(width_of(logits) < int64_t(1) << 30, "logits must have fewer than 2^30 columns");
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy_stats(const Tensor& logits, const Tensor& target,
                                                       int64_t vocab_start, int64_t vocab_size) {
    const OnDevice here(logits, {&target});
    require_logits(logits, target);
    const int64_t rows = rows_of(logits);
    Tensor max = fp32_like(logits, {rows}), sum = fp32_like(logits, {rows}),
           target_logit = fp32_like(logits, {rows});
    check(chimed_cuda_cross_entropy_stats(
              dtype_of(logits), in(logits), in<int64_t>(target), out<float>(max), out<float>(sum),
              out<float>(target_logit), rows, width_of(logits),
              valid_columns(logits, vocab_start, vocab_size), vocab_start, here.stream()),
          "cross_entropy_stats");
    return {max, sum, target_logit};
}

void cross_entropy_backward_(const Tensor& logits, const Tensor& target, const Tensor& log_sum_exp,
                             const Tensor& grad, int64_t vocab_start, int64_t vocab_size,
                             double z_loss) {
    const OnDevice here(logits, {&target, &log_sum_exp, &grad});
    require_logits(logits, target);
    const int64_t rows = rows_of(logits);
    require_fp32(log_sum_exp, rows);
    require_fp32(grad, rows);
    check(chimed_cuda_cross_entropy_backward(
              dtype_of(logits), out(logits), in<int64_t>(target), in<float>(log_sum_exp),
              in<float>(grad), rows, width_of(logits),
              valid_columns(logits, vocab_start, vocab_size), vocab_start, float(z_loss),
              here.stream()),
          "cross_entropy_backward_");
}

Tensor scaled_masked_softmax_forward(const Tensor& x, const std::optional<Tensor>& mask,
                                     double scale, bool causal) {
    const OnDevice here(x, {mask ? &*mask : nullptr});
    require_dense(x);
    require(x.dim() == 4, "x must be [b, n, sq, sk]");
    const int64_t n = x.size(1), sq = x.size(2), sk = x.size(3);
    require(sk < int64_t(1) << 30, "x must have fewer than 2^30 columns");
    int64_t mask_period = 0;
    if (mask) {
        require_dense(*mask);
        require(mask->scalar_type() == ScalarType::Bool && mask->dim() == 4 &&
                    (mask->size(0) == 1 || mask->size(0) == x.size(0)) &&
                    mask->numel() == mask->size(0) * sq * sk,
                "mask must be bool [b or 1, 1, sq, sk]");
        mask_period = mask->size(0) == 1 ? 0 : n * sq;
    }
    Tensor y = empty_like(x);
    check(chimed_cuda_softmax_forward(dtype_of(x), in(x), mask ? in<uint8_t>(*mask) : nullptr,
                                      out(y), rows_of(x), sq, sk, mask_period, float(scale), causal,
                                      here.stream()),
          "scaled_masked_softmax_forward");
    return y;
}

Tensor scaled_masked_softmax_backward(const Tensor& dy, const Tensor& y, double scale) {
    const OnDevice here(y, {&dy});
    require_twins(dy, y);
    require(width_of(y) < int64_t(1) << 30, "y must have fewer than 2^30 columns");
    Tensor dx = empty_like(y);
    check(chimed_cuda_softmax_backward(dtype_of(y), in(dy), in(y), out(dx), rows_of(y), width_of(y),
                                       float(scale), here.stream()),
          "scaled_masked_softmax_backward");
    return dx;
}

ChimedAdamW adamw_settings(double beta1, double beta2, int64_t step) {
    require(step >= 1, "step counts from 1");
    ChimedAdamW settings = {};
    settings.beta1 = beta1;
    settings.beta2 = beta2;
    settings.bias_correction1 = 1.0 - std::pow(beta1, double(step));
    settings.bias_correction2 = 1.0 - std::pow(beta2, double(step));
    return settings;
}

// The addresses of tensors that are dense, on this device, of one dtype and of the params' sizes.
std::vector<void*> addresses(const std::vector<Tensor>& tensors, const std::vector<Tensor>& params,
                             const OnDevice& here) {
    require(tensors.size() == params.size(), "adamw_ needs lists of one length");
    std::vector<void*> pointers;
    for (size_t i = 0; i < tensors.size(); ++i) {
        here.require_here(tensors[i]);
        require_dense(tensors[i]);
        require(tensors[i].scalar_type() == tensors[0].scalar_type(),
                "the tensors of a list must have one dtype");
        require(tensors[i].numel() == params[i].numel(), "lists must agree in their sizes");
        pointers.push_back(out(tensors[i]));
    }
    return pointers;
}

std::vector<float*> fp32_addresses(const std::vector<Tensor>& tensors,
                                   const std::vector<Tensor>& params, const OnDevice& here) {
    std::vector<float*> pointers;
    for (void* pointer : addresses(tensors, params, here)) {
        pointers.push_back(static_cast<float*>(pointer));
    }
    require(tensors[0].scalar_type() == ScalarType::Float, "parameters and moments are float32");
    return pointers;
}

void adamw_(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
            const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
            const std::vector<Tensor>& copies, double lr, double beta1, double beta2, double eps,
            double weight_decay, int64_t step, double grad_scale) {
    if (params.empty()) return;
    const OnDevice here(params[0]);
    ChimedAdamW settings = adamw_settings(beta1, beta2, step);
    settings.lr = lr;
    settings.eps = eps;
    settings.weight_decay = weight_decay;
    settings.grad_scale = grad_scale;
    const auto param = fp32_addresses(params, params, here);
    const auto exp_avg = fp32_addresses(exp_avgs, params, here);
    const auto exp_avg_sq = fp32_addresses(exp_avg_sqs, params, here);
    const auto grad = addresses(grads, params, here);
    const auto copy = copies.empty() ? std::vector<void*>() : addresses(copies, params, here);
    std::vector<int64_t> sizes;
    for (const Tensor& x : params) sizes.push_back(x.numel());
    check(chimed_cuda_adamw(dtype_of(grads[0]), copies.empty() ? CHIMED_F32 : dtype_of(copies[0]),
                            int64_t(params.size()), param.data(), grad.data(), exp_avg.data(),
                            exp_avg_sq.data(), copies.empty() ? nullptr : copy.data(), sizes.data(),
                            &settings, here.stream()),
          "adamw_");
}

Tensor l2_norm(const std::vector<Tensor>& tensors) {
    require(!tensors.empty(), "l2_norm needs at least one tensor");
    const OnDevice here(tensors[0]);
    std::vector<const void*> pointers;
    std::vector<int> dtypes;
    std::vector<int64_t> sizes;
    for (const Tensor& x : tensors) {
        here.require_here(x);
        require_dense(x);
        pointers.push_back(in(x));
        dtypes.push_back(dtype_of(x));
        sizes.push_back(x.numel());
    }
    const int64_t count = int64_t(tensors.size());
    Tensor partials = fp32_like(tensors[0], {chimed_cuda_l2_norm_partials(count, sizes.data())});
    Tensor norm = fp32_like(tensors[0], {});
    check(chimed_cuda_l2_norm(count, pointers.data(), dtypes.data(), sizes.data(),
                              out<float>(partials), out<float>(norm), here.stream()),
          "l2_norm");
    return norm;
}

}  // namespace
}  // namespace chimed

STABLE_TORCH_LIBRARY_IMPL(chimed, CUDA, m) {
    using namespace chimed;
    CHIMED_REGISTER_COMMON_OPS(m)
}
