// The ops that both bindings implement, under the names of the schemas. A macro, since each binding
// registers functions of its own by these names: included where they are all declared.
#pragma once

#define CHIMED_REGISTER_COMMON_OPS(m)                                                     \
    m.impl("rms_norm_forward", TORCH_BOX(&rms_norm_forward));                             \
    m.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward));                           \
    m.impl("add_rms_norm_forward", TORCH_BOX(&add_rms_norm_forward));                     \
    m.impl("add_rms_norm_backward", TORCH_BOX(&add_rms_norm_backward));                   \
    m.impl("swiglu_forward", TORCH_BOX(&swiglu_forward));                                 \
    m.impl("swiglu_backward", TORCH_BOX(&swiglu_backward));                               \
    m.impl("rope", TORCH_BOX(&rope));                                                     \
    m.impl("cross_entropy_stats", TORCH_BOX(&cross_entropy_stats));                       \
    m.impl("cross_entropy_backward_", TORCH_BOX(&cross_entropy_backward_));               \
    m.impl("scaled_masked_softmax_forward", TORCH_BOX(&scaled_masked_softmax_forward));   \
    m.impl("scaled_masked_softmax_backward", TORCH_BOX(&scaled_masked_softmax_backward)); \
    m.impl("adamw_", TORCH_BOX(&adamw_));                                                 \
    m.impl("l2_norm", TORCH_BOX(&l2_norm));
