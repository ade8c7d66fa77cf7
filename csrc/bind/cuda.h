// What the CUDA side of every op needs beside `tensors.h`: the device, its stream, errors.
//
// No CUDA header is needed here. A failed launch raises at once; an error inside a kernel shows
// where CUDA reports it, as for torch's own.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <initializer_list>

#include "arguments.h"
#include "tensors.h"

// The text of an error that a launcher returned.
extern "C" const char* chimed_cuda_error_string(int error);

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

// Raises if a launcher of the op returned an error.
void check(int error, const char* op) {
    STD_TORCH_CHECK(error == 0, "chimed: ", op, ": ", chimed_cuda_error_string(error), " (CUDA ",
                    error, ")");
}

const void* in_or_null(const Tensor* x) { return x ? in(*x) : nullptr; }

}  // namespace

}  // namespace chimed
