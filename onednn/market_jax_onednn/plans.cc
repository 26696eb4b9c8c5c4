#include "plans.h"

#include <omp.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <shared_mutex>
#include <unordered_map>

namespace market_jax {
namespace {

using dnnl::memory;
using Dims = memory::dims;
using Key = std::vector<int64_t>;
using Arguments = std::unordered_map<int, memory>;

// Work is shared out by ParallelFor: OpenMP must not start threads of its own within a share.
void StayInThread() {
  thread_local const bool told = (omp_set_num_threads(1), true);
  (void)told;
}

const dnnl::engine& Engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

dnnl::stream& Stream() {
  thread_local dnnl::stream stream(Engine());
  return stream;
}

memory::data_type DataType(Type type) {
  return type == Type::kFloat32 ? memory::data_type::f32 : memory::data_type::bf16;
}

template <typename Plan, typename Make>
std::shared_ptr<const Plan> Find(const Key& key, const Make& make) {
  static std::shared_mutex mutex;
  static std::map<Key, std::shared_ptr<const Plan>> plans;
  {
    std::shared_lock lock(mutex);
    if (auto found = plans.find(key); found != plans.end()) return found->second;
  }
  StayInThread();
  auto plan = make();  // by several threads at once, perhaps: the first one's is kept
  std::unique_lock lock(mutex);
  return plans.emplace(key, std::move(plan)).first->second;
}

memory Scratch(const memory::desc& desc) {
  return memory(desc, Engine(), Workspace::Get(Workspace::kScratch, desc.get_size() + 64));
}

struct MatrixProduct {
  dnnl::matmul primitive;
  memory::desc a, b, c, bias, scratch;
};

dnnl::primitive_attr Attributes(const Behind& behind, const memory::desc& y, bool add = false) {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  dnnl::post_ops after;
  if (add) after.append_sum(1);
  if (behind.residual) after.append_binary(dnnl::algorithm::binary_add, y);
  switch (behind.kind) {
    case Activation::kRelu: after.append_eltwise(dnnl::algorithm::eltwise_relu, 0, 0); break;
    case Activation::kRelu6: after.append_eltwise(dnnl::algorithm::eltwise_clip, 0, 6); break;
    case Activation::kLeakyRelu:
      after.append_eltwise(dnnl::algorithm::eltwise_relu, behind.slope, 0);
      break;
    default: break;
  }
  attributes.set_post_ops(after);
  return attributes;
}

memory Wrap(const memory::desc& desc, const void* data) {
  return memory(desc, Engine(), const_cast<void*>(data));
}

void AddBehind(const Behind& behind, const memory::desc& bias, const memory::desc& y,
               Arguments& arguments) {
  if (behind.bias) arguments.emplace(DNNL_ARG_BIAS, Wrap(bias, behind.bias));
  if (behind.residual) {
    arguments.emplace(DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1, Wrap(y, behind.residual));
  }
}

void Multiply(Type type, bool add, int64_t m, int64_t k, int64_t n, Matrix a, Matrix b, Matrix c,
              const Behind& behind) {
  const Key key{static_cast<int64_t>(type), add,      m,     k,     n,       a.row,
                a.column,                   b.row, b.column, c.row, c.column, behind.key()};
  const auto plan = Find<MatrixProduct>(key, [&] {
    auto made = std::make_shared<MatrixProduct>();
    const auto out = add ? memory::data_type::f32 : DataType(type);
    made->a = memory::desc({m, k}, DataType(type), Dims{a.row, a.column});
    made->b = memory::desc({k, n}, DataType(type), Dims{b.row, b.column});
    made->c = memory::desc({m, n}, out, Dims{c.row, c.column});
    made->bias = memory::desc({1, n}, memory::data_type::f32, memory::format_tag::ab);
    const auto attributes = Attributes(behind, made->c, add);
    const auto described =
        behind.bias ? dnnl::matmul::primitive_desc(Engine(), made->a, made->b, made->bias, made->c,
                                                   attributes)
                    : dnnl::matmul::primitive_desc(Engine(), made->a, made->b, made->c, attributes);
    made->primitive = dnnl::matmul(described);
    made->scratch = described.scratchpad_desc();
    return made;
  });
  StayInThread();
  Arguments arguments{{DNNL_ARG_SRC, Wrap(plan->a, a.data)},
                      {DNNL_ARG_WEIGHTS, Wrap(plan->b, b.data)},
                      {DNNL_ARG_DST, Wrap(plan->c, c.data)},
                      {DNNL_ARG_SCRATCHPAD, Scratch(plan->scratch)}};
  AddBehind(behind, plan->bias, plan->c, arguments);
  plan->primitive.execute(Stream(), arguments);
}

}  // namespace

bool Geometry::pointwise() const {
  const bool one = window[0] == 1 && window[1] == 1 && strides[0] == 1 && strides[1] == 1;
  return one && groups == 1 && !(before[0] || before[1] || after[0] || after[1]);
}

bool Geometry::depthwise() const {
  const bool square = window[0] == window[1] && strides[0] == strides[1];
  return groups > 1 && groups == channels && groups == outputs && square &&
         (window[0] == 3 || window[0] == 5) && strides[0] <= 2 && dilation[0] == 1 &&
         dilation[1] == 1 && before[0] < window[0] && before[1] < window[1] &&
         after[0] < window[0] && after[1] < window[1];
}

void* Workspace::Get(Slot slot, size_t bytes) {
  struct Block {
    void* data = nullptr;
    size_t size = 0;
    ~Block() { std::free(data); }
  };
  thread_local std::array<Block, kSlots> blocks;
  Block& block = blocks[slot];
  if (block.size < bytes) {
    std::free(block.data);
    block.data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    block.size = block.data ? bytes : 0;
    if (!block.data) throw std::bad_alloc();
  }
  return block.data;
}

std::shared_ptr<const Convolution> Convolution::Find(Product product, Type type,
                                                     const Geometry& g, const Behind& behind) {
  const Key key{static_cast<int64_t>(product), static_cast<int64_t>(type), g.images, g.height,
                g.width, g.channels, g.rows, g.columns, g.outputs, g.window[0], g.window[1],
                g.groups, g.strides[0], g.strides[1], g.before[0], g.before[1], g.after[0],
                g.after[1], g.dilation[0], g.dilation[1], behind.key()};
  return market_jax::Find<Convolution>(key, [&] {
    auto plan = std::make_shared<Convolution>();
    const auto data = DataType(type);
    const auto of_w = product == Product::kWeightGradient ? memory::data_type::f32 : data;
    plan->product_ = product;
    plan->x_ = memory::desc({g.images, g.channels, g.height, g.width}, data,
                            memory::format_tag::nhwc);
    plan->y_ = memory::desc({g.images, g.outputs, g.rows, g.columns}, data,
                            memory::format_tag::nhwc);
    const int64_t inputs = g.channels / g.groups, row = g.window[1] * inputs * g.outputs;
    Dims dims{g.outputs, inputs, g.window[0], g.window[1]};
    Dims distances{1, g.outputs, row, inputs * g.outputs};
    if (g.groups > 1) {
      dims = {g.groups, g.outputs / g.groups, inputs, g.window[0], g.window[1]};
      distances = {g.outputs / g.groups, 1, g.outputs, row, inputs * g.outputs};
    }
    plan->user_w_ = memory::desc(dims, of_w, distances);
    const memory::desc any(dims, of_w, memory::format_tag::any);
    const memory::desc any_w(dims, data, memory::format_tag::any);
    const Dims strides{g.strides[0], g.strides[1]}, before{g.before[0], g.before[1]};
    const Dims after{g.after[0], g.after[1]};
    const Dims dilation{g.dilation[0] - 1, g.dilation[1] - 1};

    plan->bias_ = memory::desc({g.outputs}, memory::data_type::f32, memory::format_tag::a);
    const auto attributes = Attributes(behind, plan->y_);
    const auto direct = dnnl::algorithm::convolution_direct;
    using Forward = dnnl::convolution_forward::primitive_desc;
    const auto training = dnnl::prop_kind::forward_training;
    const Forward forward =
        behind.bias ? Forward(Engine(), training, direct, plan->x_, any_w, plan->bias_, plan->y_,
                              strides, dilation, before, after, attributes)
                    : Forward(Engine(), training, direct, plan->x_, any_w, plan->y_, strides,
                              dilation, before, after, attributes);
    const auto keep = [&](const auto& described, const memory::desc& w, auto primitive) {
      plan->primitive_ = primitive;
      plan->w_ = w;
      plan->scratch_ = described.scratchpad_desc();
    };
    if (product == Product::kConvolve) {
      keep(forward, forward.weights_desc(), dnnl::convolution_forward(forward));
    } else if (product == Product::kInputGradient) {
      const dnnl::convolution_backward_data::primitive_desc backward(
          Engine(), direct, plan->x_, any, plan->y_, strides, dilation, before, after, forward,
          attributes);
      keep(backward, backward.weights_desc(), dnnl::convolution_backward_data(backward));
    } else {
      const dnnl::convolution_backward_weights::primitive_desc backward(
          Engine(), direct, plan->x_, any, plan->y_, strides, dilation, before, after, forward,
          attributes);
      keep(backward, backward.diff_weights_desc(), dnnl::convolution_backward_weights(backward));
    }
    if (plan->w_ != plan->user_w_) {
      const bool gradient = product == Product::kWeightGradient;
      const auto& from = gradient ? plan->w_ : plan->user_w_;
      const auto& to = gradient ? plan->user_w_ : plan->w_;
      plan->reorder_ = dnnl::reorder(dnnl::reorder::primitive_desc(Engine(), from, Engine(), to));
    }
    return plan;
  });
}

void Convolution::Reorder(const void* from, void* to) const {
  StayInThread();
  const bool gradient = product_ == Product::kWeightGradient;
  memory source(gradient ? w_ : user_w_, Engine(), const_cast<void*>(from));
  memory target(gradient ? user_w_ : w_, Engine(), to);
  reorder_.execute(Stream(), source, target);
}

void Convolution::Reorder(const Convolution& other, const void* from, void* to) const {
  StayInThread();
  memory source = Wrap(other.w_, from), target(w_, Engine(), to);
  dnnl::reorder(source, target).execute(Stream(), source, target);
}

void Convolution::Run(void* x, void* w, void* y, const Behind& behind) const {
  StayInThread();
  const bool forward = product_ == Product::kConvolve;
  Arguments arguments{{DNNL_ARG_SCRATCHPAD, Scratch(scratch_)}};
  arguments.emplace(product_ == Product::kInputGradient ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC,
                    memory(x_, Engine(), x));
  arguments.emplace(
      product_ == Product::kWeightGradient ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS,
      memory(w_, Engine(), w));
  arguments.emplace(forward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, memory(y_, Engine(), y));
  AddBehind(behind, bias_, y_, arguments);
  primitive_.execute(Stream(), arguments);
}

void Multiply(Type type, int64_t m, int64_t k, int64_t n, Matrix a, Matrix b, Matrix c,
              const Behind& behind) {
  Multiply(type, false, m, k, n, a, b, c, behind);
}

void MultiplyAndAdd(Type type, int64_t m, int64_t k, int64_t n, Matrix a, Matrix b, Matrix c) {
  Multiply(type, true, m, k, n, a, b, c, {});
}

}  // namespace market_jax
