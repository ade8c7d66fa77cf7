// What a CPU build of torch lacks for fake tensors on a CUDA device: a device with a current index and
// streams, and the answer that CUDA is there. Nothing can be computed on it.
//
// torch asks once, while it is imported, so this library is loaded before.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/FakeGuardImpl.h>

namespace at {

struct CUDAHooks final : CUDAHooksInterface {
    explicit CUDAHooks(CUDAHooksArgs) {}
    void init() const override {}
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasCUDA() const override { return true; }
    bool hasPrimaryContext(DeviceIndex) const override { return true; }
    DeviceIndex deviceCount() const override { return 8; }
    DeviceIndex getCurrentDevice() const override { return 0; }
    DeviceIndex current_device() const override { return 0; }
    int getNumGPUs() const override { return 8; }
};

REGISTER_CUDA_HOOKS(CUDAHooks)  // the name under which torch looks for them

}  // namespace at

namespace c10::impl {

C10_REGISTER_GUARD_IMPL(CUDA, FakeGuardImpl<DeviceType::CUDA>);

}  // namespace c10::impl
