// The forward pass, for the three kinds of convolutions.

#include "call.h"

namespace market_jax {
namespace {

// What oneDNN does behind a product, for a piece of y that begins at a number of it.
Behind After(const Call& call, const ForwardBuffers& b, int64_t at, int64_t column = 0) {
  return {b.bias ? b.bias + column : nullptr, Offset(b.residual, at, call.type), call.after.kind,
          call.after.slope};
}

void Moments(const Call& call, const ForwardBuffers& b, int64_t pixel, int64_t pixels,
             float* sums) {
  const int64_t channels = call.outputs();
  if (!b.sums) return;
  call.kernels.moments(call.type, pixels, channels, Offset(b.y, pixel * channels, call.type), sums);
}

void Keep(const Call& call, const ForwardBuffers& b, Sums& sums) {
  if (b.sums) std::memcpy(b.sums, sums.Total(call.pool), 2 * call.outputs() * sizeof(float));
}

void ForwardPointwise(const Call& call, const ForwardBuffers& b) {
  const int64_t c = call.g.channels, k = call.g.outputs, rows = call.g.images * call.in_pixels();
  // few rows: pieces of columns instead, so that every thread has some
  int64_t run = std::min(call.matrix_rows(), std::max<int64_t>(Ceil(rows, call.threads()), 64));
  const int64_t pieces = Ceil(rows, run);
  const int64_t splits = pieces < call.threads() ? std::min(call.threads(), Ceil(k, 64)) : 1;
  const int64_t width = Ceil(Ceil(k, splits), 16) * 16;
  const int64_t parts = call.parts(pieces);
  Sums sums(Workspace::kSums, parts, 2 * k);
  const auto multiply = [&](const void* z, int64_t row, int64_t count, int64_t column) {
    const int64_t columns = std::min(width, k - column);
    if (columns <= 0) return;
    Multiply(call.type, count, c, columns, {z, c, 1}, {Offset(b.w, column, call.type), k, 1},
             {Offset(b.y, row * k + column, call.type), k, 1},
             After(call, b, row * k + column, column));
  };
  if (splits > 1) {
    const void* z = Activated(call, b.x, 0, rows);
    ParallelFor(call.pool, splits, [&](int64_t i) { multiply(z, 0, rows, i * width); });
    Moments(call, b, 0, rows, sums.Part(0));
  } else {
    ForParts(call.pool, pieces, parts, [&](int64_t part, int64_t first, int64_t last) {
      for (int64_t row = first * run; row < std::min(last * run, rows); row += run) {
        const int64_t count = std::min(run, rows - row);
        multiply(Activated(call, b.x, row, count), row, count, 0);
        Moments(call, b, row, count, sums.Part(part));
      }
    });
  }
  Keep(call, b, sums);
}

void ForwardDepthwise(const Call& call, const ForwardBuffers& b) {
  const Strips strips(call, call.g.rows);
  const Depthwise& d = strips.d;
  const int64_t pieces = call.g.images * strips.count, parts = call.parts(pieces);
  Sums sums(Workspace::kSums, parts, 2 * d.channels);
  ForParts(call.pool, pieces, parts, [&](int64_t part, int64_t first, int64_t last) {
    float* scratch =
        Workspace::Floats(Workspace::kInput, call.kernels.depthwise_scratch(d, strips.strip));
    strips.Each(first, last, [&](const Depthwise& own, int64_t image, int64_t row, int64_t end,
                                 int64_t channel) {
      const int64_t in = image * d.height * d.width * d.channels + channel;
      const int64_t out = image * d.rows * d.columns * d.channels + channel;
      call.kernels.depthwise(call.type, own, row, end, Offset(b.x, in, call.type),
                             From(call.before, channel), static_cast<const float*>(b.w) + channel,
                             b.bias ? b.bias + channel : nullptr,
                             Offset(b.residual, out, call.type), call.after,
                             Offset(b.y, out, call.type),
                             b.sums ? sums.Part(part) + channel : nullptr, scratch);
    });
  });
  Keep(call, b, sums);
}

// Weights as a plan wants them, in the calling thread's workspace where they have to be moved.
void* Weights(const Call& call, const Convolution& plan, const void* w, int64_t packed) {
  void* moved = const_cast<void*>(w);
  if (packed) {
    const auto packing = PackingPlan(call.type, call.g);
    if (packed != static_cast<int64_t>(packing->weights_size())) {
      throw std::invalid_argument("the weights were packed for another geometry");
    }
    if (plan.SameLayout(*packing)) return moved;
    moved = Workspace::Get(Workspace::kWeights, plan.weights_size());
    plan.Reorder(*packing, w, moved);
  } else if (!plan.plain()) {
    moved = Workspace::Get(Workspace::kWeights, plan.weights_size());
    plan.Reorder(w, moved);
  }
  return moved;
}

// Rows [first, last) of the output as a convolution of their own, and the input's row they begin at.
std::pair<Geometry, int64_t> RowsOf(const Geometry& g, int64_t first, int64_t last) {
  Geometry own = g;
  const int64_t reach = (g.window[0] - 1) * g.dilation[0] + 1;
  const int64_t from = first * g.strides[0] - g.before[0];
  const int64_t to = (last - 1) * g.strides[0] - g.before[0] + reach;
  const int64_t inside = std::max<int64_t>(from, 0), end = std::min(to, g.height);
  own.rows = last - first, own.height = end - inside;
  own.before[0] = inside - from, own.after[0] = std::max<int64_t>(to - g.height, 0);
  return {own, inside};
}

// Few images: strips of the output's rows, so that every thread has some.
void ForwardRows(const Call& call, const ForwardBuffers& b) {
  const Geometry& g = call.g;
  const int64_t strips = std::min(call.threads(), g.rows);
  Geometry first = RowsOf(g, 0, g.rows / strips).first;
  first.images = 1;
  const auto plan = Convolution::Find(Product::kConvolve, call.type, first, After(call, b, 0));
  void* w = Weights(call, *plan, b.w, b.packed);
  ParallelFor(call.pool, g.images * strips, [&](int64_t piece) {
    const int64_t image = piece / strips, strip = piece % strips;
    const int64_t row = g.rows * strip / strips;
    auto [own, from] = RowsOf(g, row, g.rows * (strip + 1) / strips);
    own.images = 1;
    const int64_t in = (image * g.height + from) * g.width * g.channels;
    const int64_t out = (image * g.rows + row) * g.columns * g.outputs;
    const auto mine = Convolution::Find(Product::kConvolve, call.type, own, After(call, b, out));
    void* moved = w;
    if (!mine->SameLayout(*plan)) {
      moved = Workspace::Get(Workspace::kPart, mine->weights_size());
      mine->Reorder(*plan, w, moved);
    }
    mine->Run(Offset(b.x, in, call.type), moved, Offset(b.y, out, call.type), After(call, b, out));
  });
}

void ForwardOther(const Call& call, const ForwardBuffers& b) {
  if (call.g.images < call.threads() && !call.transposed && !call.activates() && !b.sums) {
    return ForwardRows(call, b);
  }
  const int64_t images = call.images(), pieces = call.g.images / images;
  const int64_t in = images * call.in_pixels(), out = images * call.out_pixels();
  Geometry g = call.g;
  g.images = images;
  const bool behind = b.bias || b.residual || call.after.kind != Activation::kNone;
  const auto plan =
      call.transposed ? Convolution::Find(Product::kInputGradient, call.type, g)
                      : Convolution::Find(Product::kConvolve, call.type, g, After(call, b, 0));
  void* w = Weights(call, *plan, b.w, b.packed);
  const int64_t parts = call.parts(pieces);
  Sums sums(Workspace::kSums, parts, 2 * call.outputs());
  ForParts(call.pool, pieces, parts, [&](int64_t part, int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      void* z = const_cast<void*>(Activated(call, b.x, piece * in, in));
      const int64_t at = piece * out * call.outputs();
      void* y = Offset(b.y, at, call.type);
      if (call.transposed) {
        plan->Run(y, w, z);
        if (behind) {
          call.kernels.epilogue(call.type, out, call.outputs(), y, b.bias,
                                Offset(b.residual, at, call.type), call.after);
        }
      } else {
        plan->Run(z, w, y, After(call, b, at));
      }
      Moments(call, b, piece * out, out, sums.Part(part));
    }
  });
  Keep(call, b, sums);
}

}  // namespace

std::shared_ptr<const Convolution> PackingPlan(Type type, Geometry g) {
  g.images = 1;
  return Convolution::Find(Product::kConvolve, type, g);
}

void RunForward(const Call& call, const ForwardBuffers& b) {
  if (!call.transposed && call.g.pointwise()) return ForwardPointwise(call, b);
  if (!call.transposed && call.g.depthwise()) return ForwardDepthwise(call, b);
  ForwardOther(call, b);
}

}  // namespace market_jax
