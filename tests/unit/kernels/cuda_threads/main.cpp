// Runs one kernel family by name, small, for ThreadSanitizer; what it computes is tested elsewhere.

#include <cstdio>
#include <cstring>
#include <vector>

#include FILE_UNDER_TEST

namespace {

// Zeros, enough for every array of a run.
template <typename T>
T* array() {
    static std::vector<std::vector<double>> all;
    all.emplace_back(1 << 15);
    return reinterpret_cast<T*>(all.back().data());
}

constexpr int64_t kRows = 3;

#if defined(NORM)
// 1024 columns take registers and 128 threads, 1001 the looping kernels; a block has several rows.
int run() {
    int error = 0;
    for (int64_t h : {1024, 1001}) {
        float* rstd = array<float>();
        error |= chimed_cuda_rms_norm_forward(CHIMED_BF16, array<char>(), array<char>(),
                                              array<char>(), array<char>(), array<char>(), rstd,
                                              kRows, h, 1e-6f, nullptr);
        error |= chimed_cuda_rms_norm_backward(CHIMED_BF16, array<char>(), array<char>(),
                                               array<char>(), array<char>(), rstd, array<char>(),
                                               array<char>(), array<float>(), 1, kRows, h, nullptr);
    }
    return error;
}
#elif defined(ENTROPY)
int run() {
    int64_t* target = array<int64_t>();
    int error = 0;
    for (int64_t v : {2048, 1001}) {
        void* logits = array<char>();
        error |= chimed_cuda_cross_entropy_stats(CHIMED_BF16, logits, target, array<float>(),
                                                 array<float>(), array<float>(), kRows, v, v, 0,
                                                 nullptr);
        error |= chimed_cuda_cross_entropy_backward(CHIMED_BF16, logits, target, array<float>(),
                                                    array<float>(), kRows, v, v, 0, 0.f, nullptr);
    }
    return error;
}
#elif defined(SOFTMAX)
int run() {
    int error = 0;
    for (int64_t sk : {1024, 1001}) {
        void* y = array<char>();
        error |= chimed_cuda_softmax_forward(CHIMED_BF16, array<char>(), nullptr, y, kRows, kRows,
                                             sk, 0, 1.f, 0, nullptr);
        error |= chimed_cuda_softmax_backward(CHIMED_BF16, array<char>(), y, array<char>(), kRows,
                                              sk, 1.f, nullptr);
    }
    return error;
}
#elif defined(L2)
int run() {
    const void* tensors[] = {array<char>()};
    const int dtypes[] = {CHIMED_F32};
    const int64_t sizes[] = {5000};
    return chimed_cuda_l2_norm(1, tensors, dtypes, sizes, array<float>(), array<float>(), nullptr);
}
#elif defined(ADAMW)
int run() {
    float* params[] = {array<float>()};
    const void* grads[] = {array<float>() + 1};
    float* exp_avgs[] = {array<float>()};
    float* exp_avg_sqs[] = {array<float>()};
    void* copies[] = {array<__half>() + 3};
    const int64_t sizes[] = {5000};
    const ChimedAdamW settings = {1e-2, 0.9, 0.95, 1e-8, 0.1, 0.1, 0.05, 1.0};
    return chimed_cuda_adamw(CHIMED_F32, CHIMED_F16, 1, params, grads, exp_avgs, exp_avg_sqs,
                             copies, sizes, &settings, nullptr);
}
#endif

}  // namespace

int main() {
    const int error = run();
    std::printf("launchers returned %d\n", error);
    return error;
}
