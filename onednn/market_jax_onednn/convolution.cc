// oneDNN's convolution and its two gradients as one XLA FFI handler.
//
// Activations are [N, H, W, C] and kernels [h, w, C / groups, K], dense, as market_jax has them.
// oneDNN may want the kernel in a layout of its own, to and from which it is reordered here.
// A plan (primitive, layouts, reorders) is made once for each geometry and kept; a lock guards
// the table of plans and is never held while computing. Plans carry no memory of their own, so any
// number of threads can run the same one.

#include <array>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using dnnl::memory;
using Dims = memory::dims;

enum Kind : int64_t { kConvolve = 0, kInputGradient = 1, kWeightGradient = 2 };

// kind, data type, groups, dims of x, w and y, strides, padding before and after, dilation
using Key = std::vector<int64_t>;

struct Plan {
  dnnl::primitive primitive;
  memory::desc x, w, y;            // as oneDNN computes
  memory::desc user_w;             // as XLA has it
  memory::desc scratch;
  std::optional<dnnl::reorder> reorder;  // of w: before a convolution, after a weight gradient
};

const dnnl::engine& Engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// Memory of the calling thread, reused from call to call.
class Workspace {
 public:
  void* Get(int slot, size_t bytes) {
    auto& [data, size] = slots_[slot];
    if (size < bytes) {
      std::free(data);
      data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
      size = data ? bytes : 0;
      if (!data) throw std::bad_alloc();
    }
    return data;
  }
  ~Workspace() {
    for (auto& slot : slots_) std::free(slot.first);
  }

 private:
  std::array<std::pair<void*, size_t>, 2> slots_{};
};

std::shared_ptr<const Plan> MakePlan(const Key& key) {
  const auto kind = static_cast<Kind>(key[0]);
  const auto type = static_cast<memory::data_type>(key[1]);
  const int64_t groups = key[2];
  const int64_t* x = &key[3];   // N H W C
  const int64_t* w = &key[7];   // h w C/groups K
  const int64_t* y = &key[11];  // N h w K
  const Dims strides{key[15], key[16]}, before{key[17], key[18]}, after{key[19], key[20]};
  const Dims dilation{key[21] - 1, key[22] - 1};

  auto plan = std::make_shared<Plan>();
  plan->x = memory::desc({x[0], x[3], x[1], x[2]}, type, memory::format_tag::nhwc);
  plan->y = memory::desc({y[0], y[3], y[1], y[2]}, type, memory::format_tag::nhwc);
  const int64_t inputs = w[2], outputs = w[3], row = w[1] * inputs * outputs;
  Dims w_dims{outputs, inputs, w[0], w[1]};
  Dims w_strides{1, outputs, row, inputs * outputs};
  if (groups > 1) {
    w_dims = {groups, outputs / groups, inputs, w[0], w[1]};
    w_strides = {outputs / groups, 1, outputs, row, inputs * outputs};
  }
  plan->user_w = memory::desc(w_dims, type, w_strides);
  const memory::desc any_w(w_dims, type, memory::format_tag::any);

  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const auto direct = dnnl::algorithm::convolution_direct;
  const dnnl::convolution_forward::primitive_desc forward(
      Engine(), dnnl::prop_kind::forward_training, direct, plan->x, any_w, plan->y, strides,
      dilation, before, after, attributes);
  if (kind == kConvolve) {
    plan->primitive = dnnl::convolution_forward(forward);
    plan->w = forward.weights_desc();
    plan->scratch = forward.scratchpad_desc();
  } else if (kind == kInputGradient) {
    const dnnl::convolution_backward_data::primitive_desc backward(
        Engine(), direct, plan->x, any_w, plan->y, strides, dilation, before, after, forward,
        attributes);
    plan->primitive = dnnl::convolution_backward_data(backward);
    plan->w = backward.weights_desc();
    plan->scratch = backward.scratchpad_desc();
  } else {
    const dnnl::convolution_backward_weights::primitive_desc backward(
        Engine(), direct, plan->x, any_w, plan->y, strides, dilation, before, after, forward,
        attributes);
    plan->primitive = dnnl::convolution_backward_weights(backward);
    plan->w = backward.diff_weights_desc();
    plan->scratch = backward.scratchpad_desc();
  }
  if (plan->w != plan->user_w) {
    const bool gradient = kind == kWeightGradient;
    const auto& from = gradient ? plan->w : plan->user_w;
    const auto& to = gradient ? plan->user_w : plan->w;
    plan->reorder.emplace(dnnl::reorder::primitive_desc(Engine(), from, Engine(), to));
  }
  return plan;
}

std::shared_ptr<const Plan> FindPlan(const Key& key) {
  static std::shared_mutex mutex;
  static std::map<Key, std::shared_ptr<const Plan>> plans;
  {
    std::shared_lock lock(mutex);
    if (auto found = plans.find(key); found != plans.end()) return found->second;
  }
  auto plan = MakePlan(key);  // by several threads at once, perhaps: the first one's is kept
  std::unique_lock lock(mutex);
  return plans.emplace(key, std::move(plan)).first->second;
}

void Run(const Plan& plan, Kind kind, void* x, void* w, void* y) {
  thread_local dnnl::stream stream(Engine());
  thread_local Workspace workspace;
  const bool gradient = kind == kWeightGradient;
  const memory user_w(plan.user_w, Engine(), w);
  memory inner_w = user_w;
  if (plan.reorder) {
    inner_w = memory(plan.w, Engine(), workspace.Get(0, plan.w.get_size()));
    if (!gradient) plan.reorder->execute(stream, const_cast<memory&>(user_w), inner_w);
  }
  const memory x_memory(plan.x, Engine(), x), y_memory(plan.y, Engine(), y);
  const memory scratch(plan.scratch, Engine(), workspace.Get(1, plan.scratch.get_size() + 64));
  std::unordered_map<int, memory> arguments{{DNNL_ARG_SCRATCHPAD, scratch}};
  arguments.emplace(kind == kInputGradient ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, x_memory);
  arguments.emplace(gradient ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, inner_w);
  arguments.emplace(kind == kConvolve ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, y_memory);
  plan.primitive.execute(stream, arguments);
  if (plan.reorder && gradient) {
    plan.reorder->execute(stream, inner_w, const_cast<memory&>(user_w));
  }
  stream.wait();
}

ffi::Error Convolution(ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::Result<ffi::AnyBuffer> c,
                       int64_t kind, ffi::Span<const int64_t> geometry) {
  // (x, w) -> y, (w, y) -> x or (x, y) -> w
  ffi::AnyBuffer x = kind == kInputGradient ? *c : a;
  ffi::AnyBuffer w = kind == kConvolve ? b : kind == kInputGradient ? a : *c;
  ffi::AnyBuffer y = kind == kConvolve ? *c : b;
  if (geometry.size() != 9) return ffi::Error::InvalidArgument("geometry must hold 9 numbers");
  memory::data_type type;
  switch (x.element_type()) {
    case ffi::DataType::F32: type = memory::data_type::f32; break;
    case ffi::DataType::BF16: type = memory::data_type::bf16; break;
    default: return ffi::Error::InvalidArgument("oneDNN convolutions take float32 and bfloat16");
  }
  if (w.element_type() != x.element_type() || y.element_type() != x.element_type()) {
    return ffi::Error::InvalidArgument("all of a convolution must be of one type");
  }
  Key key{kind, static_cast<int64_t>(type), geometry[0]};
  for (const auto& buffer : {x, w, y}) {
    if (buffer.dimensions().size() != 4) {
      return ffi::Error::InvalidArgument("all of a convolution must have four axes");
    }
    key.insert(key.end(), buffer.dimensions().begin(), buffer.dimensions().end());
  }
  key.insert(key.end(), geometry.begin() + 1, geometry.end());
  try {
    Run(*FindPlan(key), static_cast<Kind>(kind), x.untyped_data(), w.untyped_data(),
        y.untyped_data());
  } catch (const dnnl::error& error) {
    return ffi::Error::Internal(std::string("oneDNN: ") + error.what());
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "oneDNN: out of memory");
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(MarketJaxConvolution, Convolution,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("kind")
                                  .Attr<ffi::Span<const int64_t>>("geometry"));
