// The XLA FFI handlers: what they are given is checked here and handed on, see call.h.

#include <functional>
#include <new>
#include <string>

#include "call.h"

namespace market_jax {
namespace {

using Numbers = ffi::Span<const int64_t>;

ffi::Error Guard(const std::function<void()>& run) {
  try {
    run();
  } catch (const dnnl::error& error) {
    return ffi::Error::Internal(std::string("oneDNN: ") + error.what());
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "oneDNN: out of memory");
  } catch (const std::exception& error) {
    return ffi::Error::InvalidArgument(error.what());
  }
  return ffi::Error::Success();
}

Type TypeOf(Buffer buffer) {
  switch (buffer.element_type()) {
    case ffi::DataType::F32: return Type::kFloat32;
    case ffi::DataType::BF16: return Type::kBfloat16;
    default: throw std::invalid_argument("oneDNN convolutions take float32 and bfloat16");
  }
}

// A buffer of numbers for each channel, or of a whole map, has as many as it must, or none.
void Check(const char* name, Buffer buffer, int64_t count, ffi::DataType type) {
  const int64_t own = buffer.element_count();
  if (own == 0 || (own == count && buffer.element_type() == type)) return;
  throw std::invalid_argument(std::string(name) + " is of another size or type than its map");
}

constexpr ffi::DataType kNumbers = ffi::DataType::F32;

Activation Before(Buffer affine, int64_t channels, int64_t kind, float slope) {
  const float* numbers = Data<const float>(affine);
  return {numbers, numbers ? numbers + channels : nullptr, kind, slope};
}

// All numbers of a geometry but the images, in their order.
Geometry FromNumbers(const int64_t* n) {
  return {1,    n[0],         n[1],  n[2],           n[3],            n[4],            n[5],
          {n[6], n[7]}, n[8], {n[9], n[10]}, {n[11], n[12]}, {n[13], n[14]}, {n[15], n[16]}};
}

// `x` and `y` are input and output of the operation, whichever way it goes.
Geometry ReadGeometry(Buffer x, Buffer y, Numbers numbers, bool transposed) {
  const auto big = (transposed ? y : x).dimensions(), small = (transposed ? x : y).dimensions();
  if (big.size() != 4 || small.size() != 4 || numbers.size() != 11) {
    throw std::invalid_argument("a convolution has four axes, and eleven numbers of geometry");
  }
  return {big[0], big[1], big[2], big[3], small[1], small[2], small[3], {numbers[9], numbers[10]},
          numbers[0], {numbers[1], numbers[2]}, {numbers[3], numbers[4]}, {numbers[5], numbers[6]},
          {numbers[7], numbers[8]}};
}

// Weights, from XLA's layout into that of `PackingPlan`.
ffi::Error Pack(Buffer w, ffi::Result<Buffer> packed, Numbers numbers) {
  return Guard([&] {
    const auto plan = PackingPlan(TypeOf(w), FromNumbers(numbers.begin()));
    if (plan->plain()) {
      std::memcpy(packed->untyped_data(), w.untyped_data(), plan->weights_size());
    } else {
      plan->Reorder(w.untyped_data(), packed->untyped_data());
    }
  });
}

ffi::Error Forward(ffi::ThreadPool pool, Buffer x, Buffer affine, Buffer w, Buffer bias,
                   Buffer residual, ffi::Result<Buffer> y, ffi::Result<Buffer> sums,
                   Numbers numbers, bool transposed, int64_t before, int64_t after, float slope) {
  return Guard([&] {
    const Geometry g = ReadGeometry(x, *y, numbers, transposed);
    Call call{pool, TypeOf(x), g, transposed, {}, {nullptr, nullptr, after, slope}};
    call.before = Before(affine, call.inputs(), before, slope);
    const int64_t packed = w.element_type() == ffi::DataType::U8 ? w.element_count() : 0;
    const bool wide = g.depthwise() && !transposed;
    Check("affine", affine, 2 * call.inputs(), kNumbers);
    Check("bias", bias, call.outputs(), kNumbers);
    Check("residual", residual, y->element_count(), x.element_type());
    Check("y", *y, g.images * call.out_pixels() * call.outputs(), x.element_type());
    if (!packed) Check("w", w, g.weights(), wide ? kNumbers : x.element_type());
    const ForwardBuffers buffers{x.untyped_data(),     w.untyped_data(),  Data<float>(bias),
                                 Data<void>(residual), y->untyped_data(), Data<float>(*sums),
                                 packed};
    RunForward(call, buffers);
  });
}

ffi::Error Backward(ffi::ThreadPool pool, Buffer x, Buffer affine, Buffer w, Buffer y, Buffer gy,
                    Buffer gsums, ffi::Result<Buffer> gx, ffi::Result<Buffer> gaffine,
                    ffi::Result<Buffer> gw, ffi::Result<Buffer> gbias, Numbers numbers,
                    bool transposed, int64_t before, float slope) {
  return Guard([&] {
    const Geometry g = ReadGeometry(x, gy, numbers, transposed);
    Call call{pool, TypeOf(gy), g, transposed, {}, {}};
    call.before = Before(affine, call.inputs(), before, slope);
    const bool wide = g.depthwise() && !transposed;
    Check("affine", affine, 2 * call.inputs(), kNumbers);
    Check("w", w, g.weights(), wide ? kNumbers : x.element_type());
    Check("y", y, gy.element_count(), x.element_type());
    Check("gsums", gsums, 2 * call.outputs(), kNumbers);
    Check("gy", gy, g.images * call.out_pixels() * call.outputs(), x.element_type());
    const BackwardBuffers buffers{x.untyped_data(),  w.untyped_data(),   Data<void>(y),
                                  gy.untyped_data(), Data<float>(gsums), Data<void>(*gx),
                                  Data<float>(*gaffine), Data<float>(*gw), Data<float>(*gbias)};
    RunBackward(call, buffers);
  });
}

// The activation before is that of the expansion, the one after that of the filter.
ffi::Error Block(ffi::ThreadPool pool, Buffer x, Buffer expand, Buffer expand_bias, Buffer filter,
                 Buffer filter_bias, Buffer project, Buffer project_bias, Buffer residual,
                 ffi::Result<Buffer> y, Numbers numbers, int64_t before, int64_t after,
                 float slope) {
  return Guard([&] {
    const auto in = x.dimensions(), out = y->dimensions();
    Geometry g = ReadGeometry(x, *y, numbers, false);
    g.channels = g.outputs = filter.dimensions().back();
    const Call call{pool, TypeOf(x), g, false, {nullptr, nullptr, before, slope},
                    {nullptr, nullptr, after, slope}};
    const auto type = x.element_type();
    if (!g.depthwise()) throw std::invalid_argument("the filter of a block is depthwise");
    Check("expand", expand, in[3] * g.channels, type);
    Check("expand_bias", expand_bias, g.channels, kNumbers);
    Check("filter", filter, g.weights(), kNumbers);
    Check("filter_bias", filter_bias, g.channels, kNumbers);
    Check("project", project, g.channels * out[3], type);
    Check("project_bias", project_bias, out[3], kNumbers);
    Check("residual", residual, y->element_count(), type);
    if (!expand.element_count() && in[3] != g.channels) {
      throw std::invalid_argument("a block without an expansion is as wide as its input");
    }
    RunBlock(call, in[3],
             {x.untyped_data(), Data<void>(expand), Data<float>(expand_bias),
              Data<float>(filter), Data<float>(filter_bias), project.untyped_data(),
              Data<float>(project_bias), Data<void>(residual), y->untyped_data()},
             out[3]);
  });
}

// z = activation(scale * x + shift + residual)
ffi::Error Finish(ffi::ThreadPool pool, Buffer x, Buffer affine, Buffer residual,
                  ffi::Result<Buffer> z, int64_t kind, float slope) {
  return Guard([&] {
    const int64_t channels = x.dimensions().back(), rows = x.element_count() / channels;
    const Type type = TypeOf(x);
    const Activation activation = Before(affine, channels, kind, slope);
    Check("affine", affine, 2 * channels, kNumbers);
    Check("residual", residual, x.element_count(), x.element_type());
    const int64_t run = 16 * Ceil(kCache, 64 * channels), pieces = Ceil(rows, run);
    ParallelFor(pool, pieces, [&](int64_t piece) {
      const int64_t at = piece * run * channels, count = std::min(run, rows - piece * run);
      BestKernels().finish(type, count, channels, Offset(x.untyped_data(), at, type),
                           Offset(Data<void>(residual), at, type), activation,
                           Offset(z->untyped_data(), at, type));
    });
  });
}

ffi::Error FinishGradient(ffi::ThreadPool pool, Buffer x, Buffer affine, Buffer z, Buffer gz,
                          ffi::Result<Buffer> gx, ffi::Result<Buffer> gaffine,
                          ffi::Result<Buffer> gresidual, int64_t kind, float slope) {
  return Guard([&] {
    const int64_t channels = x.dimensions().back(), rows = x.element_count() / channels;
    const Type type = TypeOf(x);
    const Activation activation = Before(affine, channels, kind, slope);
    Check("affine", affine, 2 * channels, kNumbers);
    Check("z", z, x.element_count(), x.element_type());
    Check("gz", gz, x.element_count(), x.element_type());
    const int64_t run = 16 * Ceil(kCache, 64 * channels), pieces = Ceil(rows, run);
    const int64_t parts = std::min(pieces, 4 * std::max<int64_t>(pool.num_threads(), 1));
    Sums sums(Workspace::kSums, parts, 2 * channels);
    ForParts(pool, pieces, parts, [&](int64_t part, int64_t first, int64_t last) {
      for (int64_t row = first * run; row < std::min(last * run, rows); row += run) {
        const int64_t at = row * channels, count = std::min(run, rows - row);
        BestKernels().finish_gradient(type, count, channels, Offset(gz.untyped_data(), at, type),
                                      Offset(z.untyped_data(), at, type),
                                      Offset(x.untyped_data(), at, type), activation,
                                      Offset(gx->untyped_data(), at, type),
                                      Offset(Data<void>(*gresidual), at, type), sums.Part(part));
      }
    });
    std::memcpy(gaffine->untyped_data(), sums.Total(pool), 2 * channels * sizeof(float));
  });
}

}  // namespace
}  // namespace market_jax

// Bytes of the weights that the handler "Pack" makes; -1 where it cannot.
extern "C" int64_t MarketJaxPackedSize(int bfloat16, const int64_t* numbers) {
  using market_jax::Type;
  try {
    const Type type = bfloat16 ? Type::kBfloat16 : Type::kFloat32;
    return market_jax::PackingPlan(type, market_jax::FromNumbers(numbers))->weights_size();
  } catch (const std::exception&) {
    return -1;
  }
}

// Whether this CPU can run the library.
extern "C" int MarketJaxSupported() {
  try {
    market_jax::BestKernels();
    return 1;
  } catch (const std::exception&) {
    return 0;
  }
}

using Binding = xla::ffi::Ffi;
using xla::ffi::AnyBuffer;
using IntegerSpan = xla::ffi::Span<const int64_t>;

XLA_FFI_DEFINE_HANDLER_SYMBOL(MarketJaxForward, market_jax::Forward,
                              Binding::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Attr<IntegerSpan>("geometry")
                                  .Attr<bool>("transposed")
                                  .Attr<int64_t>("before")
                                  .Attr<int64_t>("after")
                                  .Attr<float>("slope"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    MarketJaxPack, market_jax::Pack,
    Binding::Bind().Arg<AnyBuffer>().Ret<AnyBuffer>().Attr<IntegerSpan>("geometry"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(MarketJaxBlock, market_jax::Block,
                              Binding::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Attr<IntegerSpan>("geometry")
                                  .Attr<int64_t>("before")
                                  .Attr<int64_t>("after")
                                  .Attr<float>("slope"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(MarketJaxBackward, market_jax::Backward,
                              Binding::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Attr<IntegerSpan>("geometry")
                                  .Attr<bool>("transposed")
                                  .Attr<int64_t>("before")
                                  .Attr<float>("slope"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(MarketJaxFinish, market_jax::Finish,
                              Binding::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Attr<int64_t>("kind")
                                  .Attr<float>("slope"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(MarketJaxFinishGradient, market_jax::FinishGradient,
                              Binding::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Attr<int64_t>("kind")
                                  .Attr<float>("slope"));
