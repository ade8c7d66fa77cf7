// The four norm ops, by the norm_forward and norm_backward of the including file: there, a residual
// is an optional tensor, but an op with it has one more output, so its schema differs. Included by
// the CPU and by the CUDA source of the norm, inside its namespace, below those two functions.

std::tuple<Tensor, Tensor> rms_norm_forward(const Tensor& x, const Tensor& weight, double eps) {
    const auto [y, summed, rstd] = norm_forward(x, nullptr, weight, eps);
    return {y, rstd};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& dy, const Tensor& x,
                                             const Tensor& weight, const Tensor& rstd) {
    return norm_backward(dy, nullptr, x, weight, rstd);
}

std::tuple<Tensor, Tensor, Tensor> add_rms_norm_forward(const Tensor& x, const Tensor& residual,
                                                        const Tensor& weight, double eps) {
    return norm_forward(x, &residual, weight, eps);
}

std::tuple<Tensor, Tensor> add_rms_norm_backward(const Tensor& dy, const Tensor& dsummed,
                                                 const Tensor& summed, const Tensor& weight,
                                                 const Tensor& rstd) {
    return norm_backward(dy, &dsummed, summed, weight, rstd);
}
