// The CPU side of the ops: allocates outputs, cuts rows over torch's threads, calls the kernels.
//
// No result depends on the number of threads: a row is computed alike in any range, and sums over
// rows are formed in blocks whose borders depend on the shape alone, then added in order. What can
// throw is done before a parallel region: an exception must not leave a thread of it.
#include <algorithm>
#include <atomic>
#include <cmath>

#include "common_ops.h"
#include "tensors.h"

namespace chimed {
namespace {

using torch::stable::empty_like;
using torch::stable::parallel_for;

std::atomic<int>& level_cell() {
    static std::atomic<int> level{chimed_cpu_best_level()};
    return level;
}

const ChimedCpuKernels& cpu() { return *chimed_cpu_kernels(level_cell().load()); }

int64_t cpu_level(int64_t level) {
    if (level >= 0 && chimed_cpu_kernels(int(level))) level_cell().store(int(level));
    return level_cell().load();
}

// At least this many elements for a thread: below, waking it costs more than it saves.
constexpr int64_t kGrain = 16384;

int64_t grain(int64_t width) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width)); }

std::tuple<Tensor, Tensor, Tensor> norm_forward(const Tensor& x, const Tensor* residual,
                                                const Tensor& weight, double eps) {
    const int64_t rows = rows_of(x), h = width_of(x);
    require_dense(x);
    require_weight(weight, x);
    if (residual) require_twins(x, *residual);
    const int dtype = dtype_of(x);
    Tensor y = empty_like(x), summed = residual ? empty_like(x) : x, rstd = fp32_like(x, {rows});
    parallel_for(0, rows, grain(h), [&](int64_t begin, int64_t end) {
        cpu().rms_norm_forward(dtype, in(x), residual ? in(*residual) : nullptr, in(weight),
                               out(y), out(summed), out<float>(rstd), begin, end, h, float(eps));
    });
    return {y, summed, rstd};
}

std::tuple<Tensor, Tensor> norm_backward(const Tensor& dy, const Tensor* dsummed, const Tensor& x,
                                         const Tensor& weight, const Tensor& rstd) {
    const int64_t rows = rows_of(x), h = width_of(x);
    require_twins(dy, x);
    if (dsummed) require_twins(*dsummed, x);
    require_weight(weight, x);
    require_fp32(rstd, rows);
    // At most 64 blocks of at least 32 rows, each with its own partial sum of dweight.
    const int64_t block = std::max<int64_t>(32, (rows + 63) / 64);
    const int64_t num_blocks = (rows + block - 1) / block;
    const int dtype = dtype_of(x);
    Tensor dx = empty_like(x), dweight = empty_like(weight), partials = fp32_like(x, {num_blocks, h});
    parallel_for(0, num_blocks, std::max<int64_t>(1, grain(h) / block),
                 [&](int64_t first, int64_t last) {
                     for (int64_t n = first; n < last; ++n) {
                         cpu().rms_norm_backward(
                             dtype, in(dy), dsummed ? in(*dsummed) : nullptr, in(x),
                             in(weight), in<float>(rstd), out(dx), out<float>(partials) + n * h,
                             n * block, std::min(rows, (n + 1) * block), h);
                     }
                 });
    parallel_for(0, h, grain(num_blocks), [&](int64_t begin, int64_t end) {
        cpu().sum_partials(dtype, in<float>(partials), out(dweight), num_blocks, begin, end,
                           h);
    });
    return {dx, dweight};
}

#include "norm_schemas.h"

Tensor swiglu_forward(const Tensor& gate_up) {
    const int64_t rows = rows_of(gate_up), f = width_of(gate_up) / 2;
    require_dense(gate_up);
    require(width_of(gate_up) % 2 == 0, "gate_up must have an even width");
    const int dtype = dtype_of(gate_up);
    std::vector<int64_t> shape(gate_up.sizes().begin(), gate_up.sizes().end());
    shape.back() = f;
    Tensor y = torch::stable::new_empty(gate_up, shape);
    parallel_for(0, rows, grain(f), [&](int64_t begin, int64_t end) {
        cpu().swiglu_forward(dtype, in(gate_up), out(y), begin, end, f);
    });
    return y;
}

Tensor swiglu_backward(const Tensor& dy, const Tensor& gate_up) {
    const int64_t rows = rows_of(gate_up), f = width_of(gate_up) / 2;
    require_dense(dy);
    require_dense(gate_up);
    require(dy.scalar_type() == gate_up.scalar_type() && dy.numel() == rows * f,
            "dy must have half the width of gate_up and its dtype");
    const int dtype = dtype_of(gate_up);
    Tensor dgate_up = empty_like(gate_up);
    parallel_for(0, rows, grain(f), [&](int64_t begin, int64_t end) {
        cpu().swiglu_backward(dtype, in(dy), in(gate_up), out(dgate_up), begin, end, f);
    });
    return dgate_up;
}

Tensor turned(const Tensor& x, const Tensor& cos, const Tensor& sin, bool inverse) {
    require(x.dim() == 3, "q and k must be [T, n, d]");
    const int64_t tokens = x.size(0), n = x.size(1), d = x.size(2);
    require(d % 2 == 0, "the head width must be even");
    require((d <= 1 || x.stride(2) == 1) && (n <= 1 || x.stride(1) == d),
            "the heads of a token must be dense");
    require_fp32(cos, tokens * (d / 2));
    require_fp32(sin, tokens * (d / 2));
    const int dtype = dtype_of(x);
    Tensor y = torch::stable::new_empty(x, std::vector<int64_t>{tokens, n, d});
    parallel_for(0, tokens, grain(n * d), [&](int64_t begin, int64_t end) {
        cpu().rope(dtype, in(x), out(y), in<float>(cos), in<float>(sin), begin, end, n, d,
                   x.stride(0), inverse);
    });
    return y;
}

std::tuple<Tensor, Tensor> rope(const Tensor& q, const Tensor& k, const Tensor& cos,
                                const Tensor& sin, bool inverse) {
    return {turned(q, cos, sin, inverse), turned(k, cos, sin, inverse)};
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy_stats(const Tensor& logits, const Tensor& target,
                                                       int64_t vocab_start, int64_t vocab_size) {
    const int64_t rows = rows_of(logits), v = width_of(logits);
    require_dense(logits);
    require_targets(target, rows);
    const int dtype = dtype_of(logits);
    const int64_t valid = valid_columns(logits, vocab_start, vocab_size);
    Tensor max = fp32_like(logits, {rows}), sum = fp32_like(logits, {rows}),
           target_logit = fp32_like(logits, {rows});
    parallel_for(0, rows, grain(v), [&](int64_t begin, int64_t end) {
        cpu().cross_entropy_stats(dtype, in(logits), in<int64_t>(target), out<float>(max),
                                  out<float>(sum), out<float>(target_logit), begin, end, v, valid,
                                  vocab_start);
    });
    return {max, sum, target_logit};
}

void cross_entropy_backward_(const Tensor& logits, const Tensor& target, const Tensor& log_sum_exp,
                             const Tensor& grad, int64_t vocab_start, int64_t vocab_size,
                             double z_loss) {
    const int64_t rows = rows_of(logits), v = width_of(logits);
    require_dense(logits);
    require_targets(target, rows);
    require_fp32(log_sum_exp, rows);
    require_fp32(grad, rows);
    const int dtype = dtype_of(logits);
    const int64_t valid = valid_columns(logits, vocab_start, vocab_size);
    parallel_for(0, rows, grain(v), [&](int64_t begin, int64_t end) {
        cpu().cross_entropy_backward(dtype, out(logits), in<int64_t>(target),
                                     in<float>(log_sum_exp), in<float>(grad), begin, end, v, valid,
                                     vocab_start, float(z_loss));
    });
}

Tensor scaled_masked_softmax_forward(const Tensor& x, const std::optional<Tensor>& mask,
                                     double scale, bool causal) {
    require_dense(x);
    require(x.dim() == 4, "x must be [b, n, sq, sk]");
    const int64_t n = x.size(1), sq = x.size(2), sk = x.size(3), rows = rows_of(x);
    int64_t mask_period = 0;
    if (mask) {
        require_dense(*mask);
        require(mask->scalar_type() == ScalarType::Bool && mask->dim() == 4
                    && (mask->size(0) == 1 || mask->size(0) == x.size(0))
                    && mask->numel() == mask->size(0) * sq * sk,
                "mask must be bool [b or 1, 1, sq, sk]");
        mask_period = mask->size(0) == 1 ? 0 : n * sq;
    }
    const int dtype = dtype_of(x);
    Tensor y = empty_like(x);
    parallel_for(0, rows, grain(sk), [&](int64_t begin, int64_t end) {
        cpu().softmax_forward(dtype, in(x), mask ? in<uint8_t>(*mask) : nullptr, out(y),
                              begin, end, sq, sk, mask_period, float(scale), causal);
    });
    return y;
}

Tensor scaled_masked_softmax_backward(const Tensor& dy, const Tensor& y, double scale) {
    require_twins(dy, y);
    const int dtype = dtype_of(y);
    Tensor dx = empty_like(y);
    const int64_t sk = width_of(y);
    parallel_for(0, rows_of(y), grain(sk), [&](int64_t begin, int64_t end) {
        cpu().softmax_backward(dtype, in(dy), in(y), out(dx), begin, end, sk, float(scale));
    });
    return dx;
}

void adamw_(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
            const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
            const std::vector<Tensor>& copies, double lr, double beta1, double beta2, double eps,
            double weight_decay, int64_t step, double grad_scale) {
    const size_t count = params.size();
    require(grads.size() == count && exp_avgs.size() == count && exp_avg_sqs.size() == count
                && (copies.empty() || copies.size() == count),
            "adamw_ needs lists of one length");
    const ChimedAdamW settings = {lr,
                                  beta1,
                                  beta2,
                                  eps,
                                  weight_decay,
                                  1.0 - std::pow(beta1, double(step)),
                                  1.0 - std::pow(beta2, double(step)),
                                  grad_scale};
    for (size_t n = 0; n < count; ++n) {
        const int64_t size = params[n].numel();
        const bool has_copy = !copies.empty();
        require_fp32(params[n], size);
        require_fp32(exp_avgs[n], size);
        require_fp32(exp_avg_sqs[n], size);
        require_dense(grads[n]);
        require(grads[n].numel() == size, "a gradient must have its parameter's shape");
        if (has_copy) {
            require_dense(copies[n]);
            require(copies[n].numel() == size, "a copy must have its parameter's shape");
        }
        const int grad_dtype = dtype_of(grads[n]);
        const int copy_dtype = has_copy ? dtype_of(copies[n]) : int(CHIMED_F32);
        parallel_for(0, size, kGrain, [&](int64_t begin, int64_t end) {
            cpu().adamw(grad_dtype, copy_dtype, out<float>(params[n]), in(grads[n]),
                        out<float>(exp_avgs[n]), out<float>(exp_avg_sqs[n]),
                        has_copy ? out(copies[n]) : nullptr, begin, end, &settings);
        });
    }
}

Tensor l2_norm(const std::vector<Tensor>& tensors) {
    require(!tensors.empty(), "l2_norm needs at least one tensor");
    constexpr int64_t kBlock = 4 * kGrain;
    double total = 0.0;
    for (const Tensor& x : tensors) {
        require_dense(x);
        const int64_t size = x.numel(), num_blocks = (size + kBlock - 1) / kBlock;
        std::vector<double> sums(static_cast<size_t>(num_blocks));
        const int dtype = dtype_of(x);
        parallel_for(0, num_blocks, 1, [&](int64_t first, int64_t last) {
            for (int64_t n = first; n < last; ++n)
                sums[size_t(n)] = cpu().sum_of_squares(dtype, in(x), n * kBlock,
                                                       std::min(size, (n + 1) * kBlock));
        });
        for (const double sum : sums) total += sum;
    }
    Tensor norm = fp32_like(tensors[0], {});
    *out<float>(norm) = float(std::sqrt(total));
    return norm;
}

// The stride between tokens of x [T, heads, d].
int64_t token_stride(const Tensor& x, int64_t tokens, int64_t heads, int64_t d) {
    require(x.dim() == 3 && x.size(0) == tokens && x.size(1) == heads && x.size(2) == d,
            "query, key and value must be [T, heads, d]");
    require((d <= 1 || x.stride(2) == 1) && (heads <= 1 || x.stride(1) == d),
            "the heads of a token must be dense");
    return x.stride(0);
}

Tensor cached_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                        const Tensor& keys, const Tensor& values, const Tensor& slots,
                        const Tensor& positions) {
    require(query.dim() == 3 && keys.dim() == 4, "query is [T, n, d], keys [slots, k, max, d]");
    require_twins(keys, values);
    const int64_t tokens = query.size(0), n = query.size(1), d = query.size(2), k = keys.size(1);
    const int dtype = dtype_of(keys);
    for (const Tensor* x : {&query, &key, &value})
        require(dtype_of(*x) == dtype, "tensors must have one dtype");
    require(k > 0 && n % k == 0 && keys.size(3) == d && d > 0, "heads must fit the cache");
    require_targets(slots, tokens);
    require_targets(positions, tokens);
    int64_t longest = 0;
    for (int64_t t = 0; t < tokens; ++t) {
        const int64_t slot = in<int64_t>(slots)[t], position = in<int64_t>(positions)[t];
        require(slot >= 0 && slot < keys.size(0) && position >= 0 && position < keys.size(2),
                "a token must lie within the cache");
        longest = std::max(longest, position + 1);
    }
    const ChimedCache shape = {n, k, d, keys.size(2), longest, token_stride(query, tokens, n, d),
                               token_stride(key, tokens, k, d), token_stride(value, tokens, k, d)};
    Tensor result = torch::stable::new_empty(query, std::vector<int64_t>{tokens, n, d});
    Tensor weights = fp32_like(query, {tokens, longest});
    parallel_for(0, tokens, grain(longest * n), [&](int64_t begin, int64_t end) {
        cpu().cached_attention(dtype, in(query), in(key), in(value), out(keys), out(values),
                               in<int64_t>(slots), in<int64_t>(positions), out<float>(weights),
                               out(result), begin, end, &shape);
    });
    return result;
}

Tensor invariant_linear(const Tensor& x, const Tensor& weight) {
    require_dense(x);
    require_dense(weight);
    const int64_t rows = rows_of(x), k = width_of(x);
    const int dtype = dtype_of(x);
    require(weight.dim() == 2 && weight.size(1) == k && weight.scalar_type() == x.scalar_type(),
            "weight must be [n, k] with the width and dtype of x");
    // An odd number of cache lines: columns that follow one another share no cache set.
    const int64_t n = weight.size(0), padded = ((rows + 15) / 16 | 1) * 16;
    std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
    shape.back() = n;
    Tensor y = torch::stable::new_empty(x, shape), turned = fp32_like(x, {k, padded});
    cpu().turn_rows(dtype, in(x), out<float>(turned), rows, padded, k);
    parallel_for(0, n, std::max<int64_t>(64, grain(k)), [&](int64_t begin, int64_t end) {
        cpu().invariant_linear(dtype, in<float>(turned), in(weight), out(y), begin, end, rows, padded,
                          k, n);
    });
    return y;
}

}  // namespace
}  // namespace chimed

STABLE_TORCH_LIBRARY_IMPL(chimed, CPU, m) {
    using namespace chimed;
    CHIMED_REGISTER_COMMON_OPS(m)
    m.impl("cached_attention", TORCH_BOX(&cached_attention));
    m.impl("invariant_linear", TORCH_BOX(&invariant_linear));
}

STABLE_TORCH_LIBRARY_IMPL(chimed, CompositeExplicitAutograd, m) {
    m.impl("cpu_level", TORCH_BOX(&chimed::cpu_level));
}
